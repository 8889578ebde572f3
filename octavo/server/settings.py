"""How the HTTP server is reached, guarded and bounded; made once by the command line or a test."""

from __future__ import annotations

import ipaddress

import msgspec


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the doors; nothing here concerns the model. Names follow the flags of ``octavo serve``."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 lets the system choose; the ready line says which."""
    uds: str | None = None
    """Path of a unix socket to listen on instead of host and port."""
    ssl_keyfile: str | None = None
    ssl_keyfile_password: str | None = None
    ssl_certfile: str | None = None
    ssl_ca_certs: str | None = None
    ssl_cert_reqs: int = 0
    """0 none, 1 optional, 2 required client certificates (the values of the ``ssl`` module)."""
    ssl_ciphers: str | None = None
    root_path: str = ""
    """Where a reverse proxy shows the server, e.g. ``/llm``; works whether the proxy strips it or not."""

    api_keys: tuple[str, ...] = ()
    """Without keys everything is open, but not the rights to manage and to administer beyond loopback."""
    management_api_keys: tuple[str, ...] = ()
    """Keys that may also change what is loaded; `api_keys` then may not."""
    admin_api_keys: tuple[str, ...] = ()
    """Keys that may do everything; keys of the other kinds then may not."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names accepted besides loopback's own while bound to loopback; ``*`` turns the check off."""
    allowed_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False

    served_names: tuple[str, ...] = ()
    """Model names to answer to; the first is reported. Empty: the names that the service has."""
    allow_runtime_lora: bool = False
    """Whether clients may load and unload adapters, from any folder that the server can read."""
    allow_pull: bool = False
    """Whether clients may download models into the hub's cache."""
    dev_mode: bool = False
    """Whether clients may put the server to sleep and empty its caches."""
    batch_dir: str | None = None
    """Where files, batches and responses are kept; None: in memory, until the server ends."""
    batch_concurrency: int = 8
    """Lines of a batch at work together."""
    batch_store_bytes: int = 4 * 2**30
    """Ceiling of uploaded files and answers together, checked at uploads and new batches."""
    response_role: str = "assistant"
    exclude_tools_when_none: bool = False
    """Whether tools stay out of the prompt of a chat with tool_choice none."""
    return_tokens_as_token_ids: bool = False
    trust_request_chat_template: bool = False
    enable_tokenizer_info: bool = False
    """Whether GET /tokenizer_info tells tokenizer_config.json and the chat template."""
    middleware: tuple[str, ...] = ()
    """Names of the operator's own, as of module.Class."""
    enable_log_requests: bool = False
    enable_prompt_tokens_details: bool = False
    enable_force_include_usage: bool = False
    enable_per_request_metrics: bool = False
    enable_request_id_headers: bool = False
    disable_docs: bool = False
    disable_access_log: bool = False
    quiet_endpoints: str = "/health,/ping,/metrics"
    """Paths whose requests get no line in the access log, with commas between: probes come every second."""
    uvicorn_log_level: str = "info"
    metrics_prefix: str = "vllm:"
    otlp_traces_endpoint: str | None = None
    """URL of an OpenTelemetry collector that gets a span for each request."""

    max_body_bytes: int = 64 * 2**20
    max_messages: int = 4096
    max_tools: int = 512
    max_prompts: int = 1024
    max_sequences: int = 16384
    """Ceiling of prompts times n (or best_of) of one HTTP request; a queue that is shorter counts."""
    max_stop_strings: int = 4
    max_bad_words: int = 128
    max_listed_ids: int = 4096
    """Ceiling of entries in logit_bias and stop_token_ids."""
    max_stored_responses: int = 1000
    """Responses kept for previous_response_id; 0 keeps none."""
    max_stored_bytes: int = 64 * 2**20
    sse_keep_alive_interval: float = 0.0
    """Seconds of silence after which a stream gets a comment line; 0 for never."""
    slow_reader_timeout_s: float = 60.0
    """A stream whose client takes nothing for this long is cut and its request aborted; a body of which
    nothing comes for this long is given up."""
    keep_alive_timeout_s: int = 75
    """Idle seconds after which a kept-alive connection is closed: longer than clients keep theirs (httpx 5,
    load balancers 60), as one that is closed just when it is used again costs a request."""
    ready_timeout_s: float = 0.0
    """How long loading the model may take before the server gives up; 0 for ever."""
    shutdown_timeout_s: float = 30.0
    """How long running requests may go on after SIGTERM."""

    @property
    def prefix(self) -> str:
        """`root_path` with a leading slash and without a trailing one; "" for none."""
        plain = self.root_path.strip("/")
        return f"/{plain}" if plain else ""

    @property
    def has_keys(self) -> bool:
        """Whether clients need a key."""
        return bool(self.api_keys or self.management_api_keys or self.admin_api_keys)

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can connect over TCP (a unix socket is not TCP)."""
        return self.uds is None and is_loopback(self.host)

    @property
    def url(self) -> str:
        """Where a person finds the server."""
        if self.uds is not None:
            return f"unix:{self.uds}"
        scheme = "https" if self.ssl_certfile else "http"
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"{scheme}://{shown}:{self.port}{self.prefix}"


def is_loopback(host: str) -> bool:
    """Whether a host name or address (brackets allowed) means this machine only."""
    name = host.strip("[]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
