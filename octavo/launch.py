"""The composition root: the only file that knows everyone. From an EngineConfig to an engine that can run.

Everything is decided from config.json, the weights' headers and the machine before a weight is read, so that
what cannot work says so at once.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo import _native
from octavo.build.bind import bind, warm_up
from octavo.build.cache import SMALLEST_BYTES, PackedCache, fingerprint
from octavo.build.facts import facts
from octavo.build.load import load
from octavo.build.outline import Outline, outline
from octavo.config import machine
from octavo.config.arch import Arch
from octavo.config.encoders import position_offset
from octavo.config.engine import EngineConfig
from octavo.config.environment import cache_folder, clamp_kv_cache_space, read_environment
from octavo.config.families import FAMILY_CONFIGS
from octavo.config.generation import load_generation_config, token_ids
from octavo.config.pooling import Pooler
from octavo.engine.client import ThreadClient
from octavo.engine.core import Engine
from octavo.engine.settings import EngineSettings
from octavo.engine.stats import StatsLine
from octavo.errors import ConfigError, OctavoError, OutOfMemory
from octavo.layers.rope import RopeParams
from octavo.log import logger
from octavo.ops.contract import Limits, Rope, Runnable
from octavo.ops.packed import PackedFile
from octavo.parallel.inline import InlineExecutor
from octavo.parsers.detect import reply_format
from octavo.parsers.parser import ReplyFormat
from octavo.pipeline.gguf_tokenizer import gguf_tokenizer
from octavo.pipeline.prepare import ModelInfo, Preparer
from octavo.pipeline.service import Service
from octavo.pipeline.stop import EndTokens, end_tokens
from octavo.pipeline.template import ChatTemplate, load_template
from octavo.pipeline.tokenizer import Tokenizer
from octavo.pipeline.vocab import read_json
from octavo.runner.memory import CacheBudget, CacheShape
from octavo.runner.pooling import PoolingRunner
from octavo.runner.runner import Runner
from octavo.runner.sampling import Sampler
from octavo.types.job import ChatOptions
from octavo.weights.checkpoint import Checkpoint
from octavo.weights.dummy import DummyWeights
from octavo.weights.gguf import GgufCheckpoint
from octavo.weights.hub import TEXT_FILES, resolve_model

if TYPE_CHECKING:
    from octavo.lora.registry import Adapters
    from octavo.lora.store import AdapterStore

log = logger(__name__)

POCKET = Path(__file__).parent / "assets" / "pocket"
"""The bundled model."""

STEP_TOKENS = 1024
"""Default of max_num_batched_tokens: enough rows for the matrix kernels' full speed."""
_STEP_TARGET_S = 0.15
"""Prompt parts are sized so that a step with decodes takes about this long: see engine.pace."""
_LOGIT_ROWS = 64
_WHOLE_TOKENS = 1 << 15
"""Longer prompts that one step must hold need --max-num-batched-tokens."""
_SCALED_CONTEXT = ("linear", "dynamic", "yarn")
"""Rope types whose factor stretches the context that config.json states; the others state it stretched."""
_BLOCK_MULTIPLE = 16
"""The attention kernels read whole vectors of positions of a block."""
_LONGEST_CONTEXT = 1 << 28
"""Positions beyond this are damage: see config.arch."""


@dataclass(frozen=True)
class Launched:
    """A model that is loaded and an engine around it."""

    config: EngineConfig
    arch: Arch
    info: ModelInfo
    preparer: Preparer
    engine: Engine
    model: Runnable
    cache: CacheShape
    adapters: Adapters | None = None
    """None without --enable-lora."""
    settling: threading.Thread | None = None
    """Moves weights to where they are read faster; None: they are there."""


@dataclass(frozen=True)
class _Plan(Outline):
    """What is known before the weights are read, and what the machine allows."""

    limits: Limits
    cache: CacheShape


@dataclass(frozen=True)
class Begun:
    """A start as far as it goes by itself: everything is decided, packed weights are being read."""

    plan: _Plan
    packed: PackedFile | None
    started_s: float

    @property
    def quick(self) -> bool:
        """Whether nothing has to be packed that takes long."""
        return self.plan.weight_bytes < SMALLEST_BYTES or (
            self.packed is not None and self.packed.path.exists()
        )


def begin(config: EngineConfig) -> Begun | None:
    """Begin to load a model that is here, so that its weights are read while other modules are imported.

    None where nothing can be begun, which `build` gives the reason of.
    """
    try:
        here = config.model is None or Path(config.model).exists()
        return _begin(config) if here else None
    except (OctavoError, OSError, ValueError):
        return None


def _begin(config: EngineConfig) -> Begun:
    started = time.perf_counter()
    plan = _decide(config)
    packed = _packed(config, plan)
    if packed:
        # A thread less than there are cores: the tokenizer needs one.
        packed.begin(max(1, max(_threads(config)) - 1))
    return Begun(plan, packed, started)


def build(config: EngineConfig, served_names: Sequence[str] = (), begun: Begun | None = None) -> Launched:
    """Load the model and make its engine; `begun` is what `begin` gave for the same configuration.

    Raises OctavoError: one sentence with the numbers and the fix.
    """
    begun = begun or _begin(config)
    plan, packed = begun.plan, begun.packed
    with ThreadPoolExecutor(1, "octavo-beside") as beside:
        # A large vocabulary takes as long as small weights, and the interpreter's lock.
        if packed and packed.there:
            model = _bind(config, plan, packed, lambda: None)
            warm = beside.submit(warm_up, model, plan.cache.blocks)
            preparer = _preparer(config, plan, served_names)
            warm.result()
        else:
            text_side = beside.submit(_preparer, config, plan, served_names)
            model = _bind(config, plan, packed, lambda: text_side.result() if text_side.done() else None)
            preparer = text_side.result()
            warm_up(model, plan.cache.blocks)
    settling = packed.settle_beside() if packed else None
    adapters: Adapters | None = None
    places: AdapterStore | None = None
    if config.enable_lora:
        from octavo.lora.build import build_adapters

        adapters, places = build_adapters(config, plan.decoder, model, plan.dtype, preparer.info.names)

    def release() -> None:
        model.allocate_cache(plan.cache.blocks)

    if plan.pooler is not None:
        runner: Runner = PoolingRunner(model, plan.limits, plan.pooler.width, places)
    else:
        sampler = Sampler(plan.arch.vocab, plan.limits.sequences, pool=getattr(model, "pool", None))
        runner = Runner(model, plan.limits, plan.arch.vocab, sampler, places)
    engine = Engine(InlineExecutor(runner), plan.cache, _settings(config, plan), release=release)
    _native.trim_memory()
    log.info("%s", plan.cache.describe())
    log.info("Ready in %.1f s", time.perf_counter() - begun.started_s)
    return Launched(config, plan.arch, preparer.info, preparer, engine, model, plan.cache, adapters, settling)


def service(launched: Launched, recorder: Any = None) -> Service:
    """The asyncio service around a launched engine (its engine then runs in a thread of its own)."""
    # What is loaded stays: the collector need not walk it again in the middle of a step.
    if gc.isenabled():
        gc.collect()
    gc.freeze()
    client, environment = ThreadClient(launched.engine), read_environment()
    line = StatsLine(environment.log_stats_interval_s)
    quiet = launched.config.disable_log_stats
    return Service(
        launched.preparer,
        client,
        recorder,
        stats_line=None if quiet else lambda stats, _: line.line(stats, launched.engine.running()),
        log_interval_s=environment.log_stats_interval_s,
        form_timeout_s=environment.regex_timeout_s,
        adapters=launched.adapters,
        trim=_native.trim_memory,
    )


def _decide(config: EngineConfig) -> _Plan:
    if config.block_size < 1 or config.block_size % _BLOCK_MULTIPLE:
        raise ConfigError(
            f"--block-size {config.block_size} is no multiple of {_BLOCK_MULTIPLE}.",
            hint=f"Use {_BLOCK_MULTIPLE} or 32, or leave it out.",
        )
    known = outline(config, _folder(config), read_json)
    free_bytes = machine.free_memory_bytes() - known.weight_bytes
    if free_bytes <= 0:
        raise OutOfMemory(
            f"The weights need {-free_bytes / 2**30:.1f} GiB more memory than the "
            f"{machine.free_memory_bytes() / 2**30:.1f} GiB that are free.",
            hint="Stop other programs, or use a smaller or quantized checkpoint.",
        )
    asked_bytes = config.kv_cache_memory_bytes
    budget = CacheBudget(
        known.decoder.attention_specs(),
        config.block_size,
        known.precision.cache,
        free_bytes,
        None if asked_bytes is None else clamp_kv_cache_space(asked_bytes, free_bytes),
        config.memory_share,
        config.num_blocks_override,
    )
    max_model_len = _max_model_len(config, known.arch, budget, known.pooler)
    tokens = max(min(config.max_num_batched_tokens or STEP_TOKENS, 1 << 16), config.max_num_seqs)
    if known.pooler is not None and known.pooler.whole:
        tokens = max(tokens, min(max_model_len, _WHOLE_TOKENS))
    limits = Limits(
        tokens=tokens,
        sequences=config.max_num_seqs,
        logit_rows=tokens if known.pooler else min(tokens, max(config.max_num_seqs, _LOGIT_ROWS)),
        block_size=config.block_size,
        max_model_len=max_model_len,
    )
    cache = CacheShape.fit(budget, max_model_len=max_model_len, max_num_seqs=config.max_num_seqs)
    return _Plan(**vars(known), limits=limits, cache=cache)


def _folder(config: EngineConfig) -> Path:
    if config.model is None:
        return POCKET
    files = TEXT_FILES if config.load_format == "dummy" else None
    return _resolved(config, config.model, config.revision, files)


def _resolved(config: EngineConfig, name: str, revision: str | None, files: tuple[str, ...] | None) -> Path:
    return resolve_model(
        name,
        revision=revision,
        download_dir=config.download_dir,
        hf_token=config.hf_token,
        allow_patterns=files,
        quiet=config.quiet,
    )


def context_limit(arch: Arch) -> int:
    """The longest context that config.json allows, rope scaling counted as vLLM counts it.

    Raises CheckpointError for a factor or length that is no positive number.
    """
    limit = arch.max_positions - position_offset(arch)
    if FAMILY_CONFIGS[arch.architecture].stretched_positions:
        return limit
    for kind in set(arch.layer_types) & set(arch.rope_by_type):
        params = RopeParams(arch.rope_by_type[kind], arch.head_dim, arch.max_positions, None)
        if params.kind in _SCALED_CONTEXT:
            original = params.original if params.kind == "yarn" else arch.max_positions
            # A factor out of all measure makes an infinity: compare before it becomes an int.
            limit = max(limit, int(min(original * (params.optional("factor") or 1.0), _LONGEST_CONTEXT)))
    return limit


def _max_model_len(config: EngineConfig, arch: Arch, budget: CacheBudget, pooler: Pooler | None) -> int:
    limit = context_limit(arch)
    if pooler is not None and pooler.max_tokens is not None and config.max_model_len is None:
        limit = min(limit, pooler.max_tokens)
    wanted = config.max_model_len
    if wanted is None:
        fits = budget.choose_context(limit)
        if fits < limit:
            log.warning(
                "The model's context of %s tokens needs more KV cache than there is memory for: using %s. "
                "Give --max-model-len or --kv-cache-memory to decide yourself.",
                f"{limit:,}",
                f"{fits:,}",
            )
        return fits
    allowed = read_environment().allow_long_max_model_len and bool(arch.rope_by_type)
    if wanted > limit and not allowed:
        raise ConfigError(
            f"--max-model-len {wanted} is more than the {limit} tokens that the model was made for.",
            hint="Use a smaller one (VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 overrides, at the cost of nonsense).",
        )
    return wanted


def _threads(config: EngineConfig) -> tuple[int, int]:
    """How many a decode step may use, and one that reads prompts."""
    threads = config.threads or machine.cpu_count()
    return config.decode_threads or threads, config.prefill_threads or threads


def _bind(
    config: EngineConfig, plan: _Plan, packed: PackedFile | None, check: Callable[[], object]
) -> Runnable:
    """Read the weights; `check` is called between tensors and raises when going on is no use."""
    decode, prefill = _threads(config)
    with _Progress(plan.checkpoint, quiet=config.quiet) as on_bytes:

        def progress(read_bytes: int) -> None:
            check()
            on_bytes(read_bytes)

        model = bind(
            plan.decoder,
            load(
                plan.decoder,
                plan.checkpoint,
                plan.dtype,
                on_bytes=progress,
                roundings=plan.roundings,
                stored=plan.stored,
            ),
            plan.precision,
            plan.limits,
            config.backend,
            threads=(decode, prefill),
            packed=packed,
        )
    log.info(
        "%s (%s), %s layers, vocabulary %s, %s%s on %s%s, threads: %s",
        config.model or "The bundled pocket model",
        plan.arch.architecture,
        plan.arch.layers,
        f"{plan.arch.vocab:,}",
        plan.dtype,
        f" rounded to {config.quantization}"
        if plan.roundings
        else f" with {plan.stored.method} weights"
        if plan.stored
        else "",
        config.backend,
        f" ({isa})" if (isa := getattr(model, "isa", None)) else "",
        decode if decode == prefill else f"{decode} and for prompts {prefill}",
    )
    return model


def _packed(config: EngineConfig, plan: _Plan) -> PackedFile | None:
    """Where this model's packed weights are kept; None where they are not (dummies, OCTAVO_CACHE=off)."""
    environment = read_environment()
    if isinstance(plan.checkpoint, DummyWeights) or config.backend != "native":
        return None
    root = cache_folder(environment)
    if root is None or plan.folder == POCKET:
        return None
    files = {plan.checkpoint.file_of(name) for name in plan.checkpoint.names()}
    made_of = {
        "config": plan.arch.config,
        "architecture": plan.arch.architecture,
        "dtype": plan.dtype,
        "quantization": plan.arch.quantization,
        "roundings": sorted((name, repr(rounding)) for name, rounding in plan.roundings.items()),
    }
    cache = PackedCache(root / "packed", environment.cache_bytes)
    return cache.file(fingerprint(files, made_of), plan.weight_bytes)


class _Progress:
    """A progress bar over the weights' bytes, for checkpoints that take more than a moment."""

    def __init__(self, checkpoint: Checkpoint | GgufCheckpoint | DummyWeights, *, quiet: bool) -> None:
        self._total = 0 if isinstance(checkpoint, DummyWeights) else checkpoint.nbytes
        self._quiet = quiet or self._total < 256 << 20
        self._bar: Any = None

    def __enter__(self) -> Callable[[int], None]:
        return (lambda _: None) if self._quiet else self._more

    def _more(self, read_bytes: int) -> None:
        if self._bar is None:  # packed weights are there without
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total, unit="B", unit_scale=True, desc="Loading weights", leave=False
            )
        self._bar.update(read_bytes)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _settings(config: EngineConfig, plan: _Plan) -> EngineSettings:
    parts = (part for _, layer in plan.decoder.walk() for part in vars(layer).values())
    switches = [one.switch_tokens for one in parts if isinstance(one, Rope) and one.switch_tokens is not None]
    return EngineSettings(
        max_model_len=plan.limits.max_model_len,
        max_num_seqs=plan.limits.sequences,
        max_num_batched_tokens=plan.limits.tokens,
        logit_rows=plan.limits.logit_rows,
        max_chunk_tokens=config.max_chunk_tokens or None,
        watched_blocks=config.kv_cache_metrics_sample if config.kv_cache_metrics else 0.0,
        policy=config.scheduling_policy,
        prefix_caching=config.enable_prefix_caching and not (plan.pooler and plan.pooler.encoder),
        max_queued_requests=config.max_queued_requests,
        max_queued_tokens=config.max_queued_tokens,
        vocab=plan.arch.vocab,
        rope_switch_tokens=min(switches) if switches else None,
        step_target_s=None if plan.pooler else _STEP_TARGET_S,
        max_adapters=config.max_loras if config.enable_lora else 0,
    )


def _preparer(config: EngineConfig, plan: _Plan, served_names: Sequence[str]) -> Preparer:
    tokenizer, template = _tokenizer(config, plan)
    generation = load_generation_config(
        config.generation_config,
        None if isinstance(plan.checkpoint, GgufCheckpoint) else plan.folder,
        config.override_generation_config,
    )
    names = tuple(served_names) or (config.model or "pocket",)
    info = ModelInfo(
        names=names,
        max_model_len=plan.limits.max_model_len,
        vocab_size=plan.arch.vocab,
        max_logprobs=config.max_logprobs,
        logprobs_mode=config.logprobs_mode,
        stream_interval=config.stream_interval,
        root=str(config.model or "pocket"),
        facts=facts(plan, config.quantization),
    )
    return Preparer(
        tokenizer,
        template,
        generation,
        info,
        ends=_ends(plan, tokenizer, template, generation.eos_ids),
        default_max_tokens=config.default_max_tokens,
        loop_guard=config.loop_guard,
        seed=config.seed,
        chat_template_kwargs=config.chat_template_kwargs,
        reply_format=_reply_format(config, template),
        pooler=plan.pooler,
        pair_template=template if config.chat_template else None,
    )


def _tokenizer(config: EngineConfig, plan: _Plan) -> tuple[Tokenizer | None, ChatTemplate | None]:
    if config.skip_tokenizer_init:
        return None, None
    named, gguf, bos = config.tokenizer, plan.checkpoint, config.add_bos_token
    folder: Path | None = None
    if named is None and isinstance(gguf, GgufCheckpoint):
        tokenizer = gguf_tokenizer(gguf.metadata, str(gguf.path), add_bos_token=bos)
    else:
        folder = plan.folder
        if named is not None:
            folder = _resolved(config, named, config.tokenizer_revision, TEXT_FILES)
        tokenizer = Tokenizer.load(folder, add_bos_token=bos)
    seconds = read_environment().template_timeout_s
    return tokenizer, load_template(folder, tokenizer, config.chat_template, seconds=seconds)


def _reply_format(config: EngineConfig, template: ChatTemplate | None) -> ReplyFormat:
    text = template.text if template is not None else None
    form = reply_format(config.tool_call_parser, config.reasoning_parser, text)
    if form.tool_name or form.reasoning_name:
        names = form.tool_name or "none", form.reasoning_name or "none"
        log.info("Replies: tool calls as %s, reasoning as %s", *names)
    return form


def _ends(
    plan: _Plan, tokenizer: Tokenizer | None, template: ChatTemplate | None, generation_eos: tuple[int, ...]
) -> EndTokens:
    render: Callable[[list[dict[str, str]]], str] | None = None
    if template is not None and tokenizer is not None:
        specials, plain = tokenizer.special_tokens_map, ChatOptions(add_generation_prompt=False)
        render = lambda messages: template.render(messages, plain, specials)  # noqa: E731
    return end_tokens(
        tokenizer,
        plan.arch.vocab,
        generation_eos=generation_eos,
        config_eos=token_ids(plan.arch.config.get("eos_token_id")),
        render=render,
        source=template.source if template is not None else "",
    )
