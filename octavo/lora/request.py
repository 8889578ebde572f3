"""`LoRARequest` where scripts look for it."""

from octavo.types.lora import LoRARequest

__all__ = ["LoRARequest"]
