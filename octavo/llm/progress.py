"""The progress bar of `LLM.generate`: finished requests, and tokens per second in and out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any


class Progress:
    """A bar on stderr, or nothing at all. Use as a context manager."""

    def __init__(
        self, total: int, use_tqdm: bool | Callable[..., Any] | None, *, quiet: bool = False
    ) -> None:
        """`use_tqdm`: True shows it, False does not, None decides by the terminal; a callable makes it."""
        self._bar: Any = None
        self._begun_s = time.monotonic()
        self._in = self._out = 0
        shown = use_tqdm is True or (use_tqdm is None and not quiet and sys.stderr.isatty())
        if callable(use_tqdm):
            make: Callable[..., Any] = use_tqdm
        elif shown:
            from tqdm import tqdm

            make = tqdm
        else:
            return
        self._bar = make(total=total, desc="Processed prompts", dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def done(self, prompt_tokens: int, output_tokens: int) -> None:
        """One more request has finished."""
        self._in += prompt_tokens
        self._out += output_tokens
        if self._bar is None:
            return
        seconds = max(time.monotonic() - self._begun_s, 1e-6)
        speed = f"in {self._in / seconds:.1f}, out {self._out / seconds:.1f} tokens/s"
        if hasattr(self._bar, "set_postfix_str"):
            self._bar.set_postfix_str(speed, refresh=False)
        self._bar.update(1)
