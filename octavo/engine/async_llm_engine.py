"""`AsyncLLMEngine` where scripts for vLLM look for it."""

from octavo.aliases import later

__getattr__ = later(__name__, {"AsyncLLMEngine": "octavo.llm"})
