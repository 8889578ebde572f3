"""``octavo serve``: flags and environment to an engine's and a server's settings, then the server."""

from __future__ import annotations

import gc
import hashlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from octavo.cli.common import read_words, wants_help
from octavo.config.flag_rules import Settings

if TYPE_CHECKING:
    from octavo.config.environment import Environment
    from octavo.server.settings import ServerSettings


def main(command: str, words: Sequence[str]) -> int:
    """Serve until a signal; the exit code. Raises OctavoError for what cannot be started."""
    if (page := wants_help(command, words)) is not None:
        print(page)
        return 0
    # Modules and vocabularies stay: until they are there, the collector would walk them in vain.
    gc.disable()
    try:
        return _serve(words)
    finally:
        gc.enable()


def _serve(words: Sequence[str]) -> int:
    settings = read_words(words)
    from octavo import log

    log.setup()
    from octavo.config.environment import read_environment
    from octavo.config.start import engine_config

    config = engine_config(settings)
    server = server_settings(settings, read_environment())
    from octavo import launch

    begun = launch.begin(config)  # its weights are read while the server's modules are imported
    if begun is None or not begun.quick:
        gc.enable()
    from octavo.server.run import serve

    def service(metrics: Any) -> Any:
        """Loads the model; called in a thread once the port is taken."""
        made = launch.service(launch.build(config, server.served_names, begun), metrics)
        gc.enable()
        return made

    return serve(service, server)


def server_settings(settings: Settings, environment: Environment) -> ServerSettings:
    """The server's settings; flags win over variables."""
    from octavo.config.engine import EngineConfig
    from octavo.config.environment import cache_folder
    from octavo.server.settings import ServerSettings

    fields: dict[str, Any] = {**_from_environment(environment), **settings.server}
    # What even an empty queue has no room for is no matter of trying again later.
    queue = settings.engine.get("max_queued_requests", EngineConfig().max_queued_requests)
    fields["max_sequences"] = min(environment.max_n_sequences, queue)
    root = cache_folder(environment)
    if root is not None:
        # Its own for each model and port: another server's batches are not for this one.
        mark = f"{settings.engine.get('model')}|{fields.get('host')}|{fields.get('port')}|{fields.get('uds')}"
        name = hashlib.sha256(mark.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        fields.setdefault("batch_dir", str(root / "batches" / name))
    for kind in ("api_keys", "management_api_keys", "admin_api_keys"):
        fields[kind] = tuple(key for key in fields.get(kind, ()) if key)
    return ServerSettings(**fields)


def _from_environment(environment: Environment) -> Mapping[str, Any]:
    given: dict[str, Any] = {
        "max_prompts": environment.max_completion_prompts,
        "max_stop_strings": environment.max_stop_strings,
        "max_bad_words": environment.max_bad_words,
        "keep_alive_timeout_s": environment.keep_alive_s,
        "ready_timeout_s": environment.ready_timeout_s,
        "allow_runtime_lora": environment.allow_runtime_lora,
        "dev_mode": environment.dev_mode,
        "max_stored_responses": environment.max_stored_responses,
    }
    if environment.api_key is not None:
        given["api_keys"] = (environment.api_key,)
    return given


def run_module() -> int:
    """``python -m octavo.entrypoints.openai.api_server --model X`` is ``octavo serve X``."""
    from octavo.cli.main import run

    return run(["serve", *sys.argv[1:]])
