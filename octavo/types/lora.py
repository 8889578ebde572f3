"""What a LoRA adapter is called: by a person (LoRARequest) and inside (Adapter)."""

from __future__ import annotations

from typing import Any

import msgspec


class LoRARequest(msgspec.Struct, frozen=True, eq=False):
    """An adapter as scripts name it: ``LoRARequest("sql", 1, "/adapters/sql")``. Names as in vLLM."""

    lora_name: str
    lora_int_id: int
    """From 1."""
    lora_path: str = ""
    """A folder with adapter_config.json and adapter_model.safetensors (or .bin), or a hub id."""
    base_model_name: str | None = None
    tensorizer_config_dict: dict[str, Any] | None = None
    """Accepted, never needed."""
    load_inplace: bool = False
    """Read the files again even if an adapter of this name is there."""

    def __post_init__(self) -> None:
        if self.lora_int_id < 1:
            raise ValueError(f"lora_int_id must be at least 1, not {self.lora_int_id}")
        if not self.lora_name or not self.lora_path:
            raise ValueError("a LoRARequest needs a lora_name and a lora_path")

    @property
    def name(self) -> str:
        return self.lora_name

    @property
    def adapter_id(self) -> int:
        return self.lora_int_id

    @property
    def path(self) -> str:
        return self.lora_path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LoRARequest) and self.lora_name == other.lora_name

    def __hash__(self) -> int:
        return hash(self.lora_name)


class Adapter(msgspec.Struct, frozen=True):
    """One adapter as it was read: what a request carries from the door to the runner."""

    name: str
    path: str
    """Its folder."""
    digest: str
    """SHA-256 of its files, hexadecimal."""

    @property
    def key(self) -> str:
        """Stands for the name and the contents: KV that one key made is never read under another."""
        return f"{self.digest}:{self.name}"
