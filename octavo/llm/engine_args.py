"""`EngineArgs` and `AsyncEngineArgs`: dataclasses with a field for every flag, as in scripts for vLLM.

Making two classes of some 370 fields takes a tenth of a second, so they have a file that loads on first use.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from octavo.config.flag_table import Flag
from octavo.config.flags import Table


class _ArgsMethods:
    """What both dataclasses can do. A field that is None was not given."""

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Add every flag to an argparse parser, each with default None."""
        taken = {option for action in parser._actions for option in action.option_strings}
        for flag in _flags():
            names = [name for name in (f"--{flag.name}", *flag.aliases) if name not in taken]
            if not names:
                continue
            options: dict[str, Any] = {"dest": _field(flag), "default": None, "help": argparse.SUPPRESS}
            if flag.kind == "bool":
                options["action"] = argparse.BooleanOptionalAction
            elif flag.kind == "words":
                options["nargs"] = "+"
            parser.add_argument(*names, **options)
        return parser

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> Any:
        """The dataclass filled from a namespace; attributes that are no flags are left out."""
        names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        return cls(**{name: getattr(args, name) for name in names if hasattr(args, name)})


def _field(flag: Flag) -> str:
    return flag.name.replace("-", "_")


def _flags() -> list[Flag]:
    """Every flag once, those of the HTTP server and of the command line itself left out."""
    found = {flag.name: flag for flag in Table().flags.values()}
    return [flag for flag in found.values() if not flag.target.startswith(("server.", "cli."))]


def _fields() -> list[tuple[str, Any, Any]]:
    names = [_field(flag) for flag in _flags()]
    more = ["kv_cache_memory_bytes", "served_model_name"]
    return [(name, Any, dataclasses.field(default=None)) for name in [*names, *more]]


def _make(name: str, fields: list[tuple[str, Any, Any]], base: type) -> Any:
    return dataclasses.make_dataclass(name, fields, bases=(base,), namespace={"__module__": __name__})


EngineArgs: Any = _make("EngineArgs", _fields(), _ArgsMethods)
AsyncEngineArgs: Any = _make("AsyncEngineArgs", [], EngineArgs)
