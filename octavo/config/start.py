"""From flags and the environment to one EngineConfig: what every way of starting an engine does first."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from octavo.config import machine
from octavo.config.engine import EngineConfig
from octavo.config.environment import (
    Environment,
    parse_binding,
    read_environment,
    show_cpus,
)
from octavo.config.flag_rules import Settings
from octavo.config.flags import POCKET_NOTICE
from octavo.config.model_path import check_model_path
from octavo.log import logger

log = logger(__name__)

_THREADS = ("threads", "decode_threads", "prefill_threads")


def engine_config(settings: Settings, environ: Mapping[str, str] | None = None) -> EngineConfig:
    """The configuration that `settings` and the environment ask for; flags win over variables.

    Writes the notices to stderr, one line each, and a line when the bundled model stands in; binds this
    process to cores when the environment says so. Raises ConfigError for a variable that cannot be read and
    CheckpointError for a path that is no model folder.
    """
    for line in settings.notices:
        sys.stderr.write(line + "\n")
    fields = dict(settings.engine)
    if fields.get("model"):
        fields["model"] = os.path.expanduser(str(fields["model"]))
        check_model_path(fields["model"], dummy=fields.get("load_format") == "dummy")
    else:
        fields.pop("model", None)
        sys.stderr.write(POCKET_NOTICE + "\n")
    environment = read_environment(environ)
    if environment.kv_cache_space_bytes is not None:
        fields.setdefault("kv_cache_memory_bytes", environment.kv_cache_space_bytes)
    _threads(fields, environment)
    return EngineConfig(**fields)


def _threads(fields: dict[str, Any], environment: Environment) -> None:
    """Threads from the variables; cores named by the binding variable become the process's own.

    With fewer threads than cores named, the fastest of these; without the variable nothing is bound.
    """
    binding = parse_binding(environment.threads_bind, machine.affinity())
    cpus = binding.ranks[0] if binding.mode == "cpus" else frozenset[int]()
    _bind(cpus)
    for name in _THREADS[1:]:
        if (said := getattr(environment, name)) is not None:
            fields.setdefault(name, min(said, machine.cpu_count()))
    if "threads" not in fields:
        if environment.threads is not None:
            fields["threads"] = min(environment.threads, machine.cpu_count())
        elif cpus:
            fields["threads"] = len(cpus)
        elif environment.reserved_cpus:
            fields["threads"] = max(1, machine.cpu_count() - environment.reserved_cpus)
    most = max((fields[name] for name in _THREADS if name in fields), default=0)
    if cpus and most < len(cpus):
        fastest = frozenset(machine.physical_cpus(mask=cpus)[:most])
        _bind(fastest if len(fastest) == most else frozenset())


def _bind(cpus: frozenset[int]) -> None:
    """The process, and what threads it starts from now on, to these CPUs; none: as it is."""
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
        log.info("Computing on the cores %s, as the environment says.", show_cpus(cpus))
