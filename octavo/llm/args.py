"""Python keywords of the offline classes, brought to settings."""

from __future__ import annotations

from typing import Any

from octavo.config.flag_rules import Settings
from octavo.config.flags import from_keywords


def keywords_of(args: Any) -> dict[str, Any]:
    """The keywords that an EngineArgs, a namespace or a dict stands for; None is left out."""
    found = args if isinstance(args, dict) else vars(args)
    return {name: value for name, value in found.items() if value is not None}


def settings_of(keywords: dict[str, Any]) -> Settings:
    """Settings of an offline class. TypeError for an unknown keyword, ConfigError for a value."""
    settings = from_keywords(keywords)
    settings.engine.setdefault("disable_log_stats", True)
    return settings
