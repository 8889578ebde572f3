"""`EngineArgs` where scripts for vLLM look for it; the engine itself has no use for it."""

from octavo.aliases import later

__getattr__ = later(__name__, dict.fromkeys(("EngineArgs", "AsyncEngineArgs"), "octavo.llm"))
