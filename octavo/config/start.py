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
)
from octavo.config.flag_rules import Settings
from octavo.config.flags import POCKET_NOTICE
from octavo.config.model_path import check_model_path
from octavo.log import logger

log = logger(__name__)


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
    """Threads from the variables; cores named by the binding variable become the process's own."""
    binding = parse_binding(environment.threads_bind, machine.affinity())
    bound = binding.mode == "cpus" and bool(binding.ranks[0])
    if bound and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, binding.ranks[0])
        log.info("Computing on the %d cores that the environment names.", len(binding.ranks[0]))
    if "threads" in fields:
        return
    if environment.threads is not None:
        fields["threads"] = min(environment.threads, max(1, machine.cpu_count()))
    elif bound:
        fields["threads"] = len(binding.ranks[0])
    elif environment.reserved_cpus:
        fields["threads"] = max(1, machine.cpu_count() - environment.reserved_cpus)
