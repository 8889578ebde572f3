"""`LLM` where scripts for vLLM look for it."""

from octavo.llm.offline import LLM

__all__ = ["LLM"]
