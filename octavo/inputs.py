"""Forms of prompts, under the module name that scripts for vLLM import."""

from octavo.llm.inputs import PromptType, TextPrompt, TokensPrompt

__all__ = ["PromptType", "TextPrompt", "TokensPrompt"]
