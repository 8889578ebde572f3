"""`LLMEngine` where scripts for vLLM look for it."""

from octavo.aliases import later

__getattr__ = later(__name__, {"LLMEngine": "octavo.llm"})
