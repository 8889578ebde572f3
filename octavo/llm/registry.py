"""`ModelRegistry`, as far as scripts for vLLM ask it."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, NoReturn

from octavo.llm.control import NotHere


class ModelRegistry:
    """Which architectures there are."""

    @staticmethod
    def get_supported_archs() -> Set[str]:
        """Their names in config.json."""
        from octavo.models.registry import supported

        return set(supported())

    @staticmethod
    def register_model(model_arch: str, model_cls: Any) -> NoReturn:
        """Refused: a model is declared, not a class of PyTorch. Raises NotHere."""
        raise NotHere(
            f"{model_arch} cannot be registered: Octavo's models are declarations, not classes of PyTorch.",
            hint="See docs/adding-a-model.md.",
        )
