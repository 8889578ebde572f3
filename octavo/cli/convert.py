"""``octavo convert``: a checkpoint into another file format."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.cli.convert_flags import CONVERT
from octavo.cli.usage import UsageError, usage_errors
from octavo.config.flags import Table, parse
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.convert.gguf import Report


def main(command: str, words: Sequence[str]) -> int:
    """Convert SRC to DST; prints one line about what was written."""
    from octavo.cli.common import wants_help

    if (page := wants_help(command, words)) is not None:
        print(page)
        return 0
    with usage_errors():
        parsed = parse(words, Table(CONVERT))
    given: dict[str, Any] = {item.flag.target.removeprefix("cli."): item.value for item in parsed.given}
    strange = [item.flag.name for item in parsed.given if not item.flag.target.startswith("cli.")]
    if strange:
        raise UsageError(f"octavo convert has no flag --{strange[0]}.", hint="See octavo convert --help.")
    source, target = _places(parsed.positionals, dummy="dummy" in given)
    report = _convert(source, target, given)
    mixed = ", ".join(f"{name} {count:,}" for name, count in report.types.items())
    print(f"{report.path}: {report.nbytes:,} bytes, {report.tensors} tensors (values by type: {mixed})")
    return 0


def _places(positionals: Sequence[str], *, dummy: bool) -> tuple[str, str]:
    wanted = 1 if dummy else 2
    if len(positionals) != wanted:
        raise UsageError(
            f"octavo convert takes {'DST' if dummy else 'SRC and DST'}, not {len(positionals)} words.",
            hint="See octavo convert --help.",
        )
    return ("" if dummy else positionals[0]), positionals[-1]


def _convert(source: str, target: str, given: dict[str, Any]) -> Report:
    from octavo.bench.shapes import dummy_folder
    from octavo.convert.ggml_types import mix_of
    from octavo.convert.gguf import convert
    from octavo.weights.hub import resolve_model

    outtype = str(given.get("outtype", "auto")).lower()
    if outtype != "auto":
        mix_of(outtype)
    dummy = given.get("dummy")
    folder = dummy_folder(dummy) if dummy else resolve_model(source)
    path = _target(Path(target).expanduser(), str(dummy or folder.name), outtype)
    with _Progress(quiet=not sys.stderr.isatty()) as on_bytes:
        return convert(folder, path, outtype, dummy=bool(dummy), on_bytes=on_bytes)


def _target(path: Path, name: str, outtype: str) -> Path:
    """The file to write: `path`, or one in it named after the model. ConfigError when it exists."""
    if path.is_dir():
        path = path / f"{name}{'' if outtype == 'auto' else '-' + outtype}.gguf"
    if path.exists():
        raise ConfigError(f"{path} exists.", hint="Remove it, or give another name.")
    if not path.parent.is_dir():
        raise ConfigError(f"There is no folder {path.parent}.", hint="Make it first.")
    return path


class _Progress:
    """A bar over the bytes written."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None

    def __enter__(self) -> Callable[[int], None]:
        if self._quiet:
            return lambda _: None
        from tqdm import tqdm

        self._bar = tqdm(unit="B", unit_scale=True, desc="Writing", leave=False)
        return lambda n: (self._bar.update(n), None)[1]

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
