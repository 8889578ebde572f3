"""What a model is, what it needs and whether it runs here: from headers alone, nothing is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from msgspec.structs import replace

from octavo.build.load import load
from octavo.build.outline import Outline, outline
from octavo.config import machine
from octavo.config.arch import Arch
from octavo.config.engine import EngineConfig
from octavo.config.model_path import check_model_path, gguf_in, is_adapter
from octavo.errors import CheckpointError, OctavoError, OutOfMemory
from octavo.launch import POCKET, STEP_TOKENS, context_limit
from octavo.layers.decoder import Decoder
from octavo.lora.report import AdapterReport, base_of, report_on
from octavo.models import names, registry
from octavo.pipeline.gguf_tokenizer import gguf_templates
from octavo.pipeline.vocab import read_json
from octavo.runner.memory import CacheBudget, bytes_per_token
from octavo.weights import web
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.dummy import DummyWeights
from octavo.weights.gguf import GgufCheckpoint, open_gguf
from octavo.weights.hub import offline, resolve_model
from octavo.weights.remote import stand_in

_ROLES = (
    ("experts", r"experts|_exps\b"),
    ("norms", r"norm|\bln_|layernorm"),
    ("embedding", r"embed|\bwte\b|\bwpe\b|token_embd|position_embd|^positions"),
    ("output", r"lm_head|^output\.|^head\.|embed_out"),
    ("attention", r"attn|attention"),
    ("feed-forward", r"mlp|ffn|feed_forward|\bfc\d?\b"),
)
"""What a tensor is for, by a word of its name; the first that fits."""
_PACKED = (
    "qweight",
    "weight_packed",
    "weight_scale",
    "_scale_inv",
    "SCB",
    "absmax",
    ".W_q",
    "._weight_qdata",
)
"""Words behind a module's name that only a quantized one has."""
_BESIDE = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_\w+|input_\w+|SCB|weight\.\w+|weight_format|weight|_weight_\w+"
    r"|W_q|scale|zero|nbits|shape|axis|packing|group_size|view_as_float|unpack_view_dtype|compute_dtype"
    r"|quant_\w+|pre_quant_scale|offload_meta|encoded_state_dict|stores_quant_config|channel_wise|optimize"
    r"|round_zero)$|_(scale_inv|activation_scale|blocks|scales)$|\.(nested_)?(absmax|quant_map)$|\.quant_state\.\w+$"
)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "tekken.json")
_BASE_BYTES = 110 << 20
"""What an idle server takes without a model."""


@dataclass
class Group:
    """Tensors of one purpose that are stored alike."""

    role: str
    format: str
    tensors: int = 0
    weights: int = 0
    """Numbers that they stand for; 0: not known."""
    bytes: int = 0

    @property
    def bits_per_weight(self) -> float | None:
        return 8 * self.bytes / self.weights if self.weights else None


@dataclass
class Memory:
    """Bytes that the model takes in memory, and how long a context that leaves room for."""

    free: int
    weights: int
    process: int
    kv_per_token: int
    context: int
    """Tokens that `kv` is for."""
    kv: int
    largest_context: int
    """That fits in what is free; 0: none."""
    default_context: int
    """That is chosen without --max-model-len; 0: none fits."""

    @property
    def total(self) -> int:
        return self.weights + self.process + self.kv


@dataclass
class Report:
    """Everything that `octavo inspect` says."""

    model: str
    files: dict[str, int] = field(default_factory=dict)
    """Name -> bytes."""
    storage: str = ""
    architecture: str = ""
    family: str | None = None
    """The file that declares the architecture; None: Octavo has none."""
    shape: dict[str, int] = field(default_factory=dict)
    dtype: str | None = None
    runs_in: str | None = None
    quantization: str | None = None
    parameters: int = 0
    active_parameters: int = 0
    """Of a mixture of experts: those that a token uses."""
    groups: list[Group] = field(default_factory=list)
    context_limit: int = 0
    memory: Memory | None = None
    tokenizer: str | None = None
    chat_template: str | None = None
    runs: bool = False
    why_not: str | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        for group, own in zip(self.groups, made["groups"], strict=True):
            own["bits_per_weight"] = group.bits_per_weight
        if self.memory:
            made["memory"]["total"] = self.memory.total
        return made


def inspect(config: EngineConfig, base: str | None = None) -> Report | AdapterReport:
    """The report on `config.model`, a path, a hub id or a URL, whose weights are not downloaded.

    `base`: the model that an adapter shall fit. What keeps it from running here is in the report. Raises
    OctavoError where nothing can be said: no such model, a broken header, a hub that does not answer.
    """
    with _opened(config) as path:
        if is_adapter(path):
            return _adapter(config, path, base)
        report = Report(config.model or "pocket")
        _fill(report, config, path)
    return report


@contextmanager
def _opened(config: EngineConfig) -> Iterator[Path]:
    """The model's folder or file; a stand-in for one that is somewhere else."""
    if config.model is None or _is_here(config.model):
        yield POCKET if config.model is None else resolve_model(config.model)
        return
    if page := web.on_hub(config.model):
        config = replace(config, model=page[0], revision=config.revision or page[1])
    url = web.is_url(name := str(config.model))
    if offline() and not url:
        yield resolve_model(name, revision=config.revision, download_dir=config.download_dir)
        return
    with TemporaryDirectory(prefix="octavo-inspect-") as made:
        yield web.stand_in(name, Path(made)) if url else _from_hub(config, Path(made))


def _adapter(config: EngineConfig, path: Path, base: str | None) -> AdapterReport:
    """The report on an adapter, held against `base`, or the model that it names where that is here."""
    said = base_of(path)
    base = base or (said if said and _is_here(said) else None)
    name, rank = str(config.model), config.max_lora_rank
    if base is None:
        return report_on(name, path, None, rank)
    own = replace(config, model=base, revision=None)
    with _opened(own) as folder:
        known = outline(own, folder, read_json)
        return report_on(name, path, (base, known.decoder, known.dtype), rank)


def _from_hub(config: EngineConfig, into: Path) -> Path:
    return stand_in(
        str(config.model),
        into,
        revision=config.revision,
        download_dir=config.download_dir,
        hf_token=config.hf_token,
    )


def _is_here(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _fill(report: Report, config: EngineConfig, path: Path) -> None:
    check_model_path(str(path), dummy=config.load_format == "dummy")
    found = gguf_in(path)
    checkpoint = open_gguf(found) if found else _stored(path, config)
    _text_side(report, path, checkpoint if isinstance(checkpoint, GgufCheckpoint) else None)
    _said(report, path, checkpoint)
    known: Outline | None = None
    try:
        known = outline(config, path, read_json)
        _known(report, known, config)
        if not isinstance(known.checkpoint, DummyWeights):
            _check_tensors(known, known.checkpoint)
        _check_memory(report, config)
        report.runs = True
    except OctavoError as error:
        report.why_not = str(error)
    report.groups = _groups(checkpoint, known, report.quantization)
    if known is None:
        report.parameters = sum(group.weights for group in report.groups)


def _stored(path: Path, config: EngineConfig) -> Checkpoint | None:
    return None if config.load_format == "dummy" else open_checkpoint(path, config.load_format)


def _said(report: Report, path: Path, checkpoint: Checkpoint | GgufCheckpoint | None) -> None:
    """What the files say of themselves, whether Octavo knows it or not."""
    if checkpoint is not None:
        files = sorted({checkpoint.file_of(name) for name in checkpoint.names()})
        report.files = {file.name: file.stat().st_size for file in files}
        report.storage = {".safetensors": "safetensors"}.get(files[0].suffix, "PyTorch") if files else ""
    if isinstance(checkpoint, GgufCheckpoint):
        report.storage = "GGUF"
        report.architecture = str(checkpoint.metadata.get("general.architecture", "unnamed"))[:80]
        report.quantization = None
        return
    raw = read_json(path / "config.json")
    named = raw.get("architectures")
    report.architecture = str(named[0] if isinstance(named, list) and named else raw.get("model_type"))[:80]
    report.dtype = str(raw.get("dtype") or raw.get("torch_dtype") or "") or None
    report.quantization = _quantization(raw.get("quantization_config"))


def _quantization(config: object, method: str = "") -> str | None:
    """A quantization config in a few words; `method` where it is known better than the config says it."""
    if not isinstance(config, dict):
        return None
    words = [method or str(config.get("quant_method") or "quantized")[:40]]
    groups = config.get("config_groups")
    found = list(groups.values()) if isinstance(groups, dict) else []
    kinds = [group["weights"] for group in found if isinstance(group, dict) and group.get("weights")]
    if any(kind != kinds[0] for kind in kinds):
        return f"{words[0]}, mixed"
    said = kinds[0] if kinds and isinstance(kinds[0], dict) else _inner(config)
    kind = said.get("quant_algo") or said.get("_type")
    if isinstance(kind, str):
        words.append(kind[:60])
    bits = said.get("num_bits") or said.get("bits") or said.get("w_bit") or said.get("nbits")
    group = said.get("group_size") or said.get("q_group_size")
    if config.get("load_in_4bit"):
        words.append(str(config.get("bnb_4bit_quant_type") or "fp4")[:10])
    elif config.get("load_in_8bit"):
        bits = 8
    if isinstance(bits, int):
        words.append(f"{bits} bits")
    if isinstance(group, int) and group > 0:
        words.append(f"groups of {group}")
    return ", ".join(words)


def _inner(config: dict[str, Any]) -> dict[str, Any]:
    """Where HQQ, Model Optimizer and torchao say what they have done; else the config itself."""
    for path in (("quant_config", "weight_quant_params"), ("quantization",), ("quant_type", "default")):
        found: Any = config
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, dict):
            return found
    kind = config.get("quant_type")
    return {**config, "_type": kind} if isinstance(kind, str) else config


def _text_side(report: Report, path: Path, gguf: GgufCheckpoint | None) -> None:
    if gguf is not None:
        kind = gguf.metadata.get("tokenizer.ggml.model")
        report.tokenizer = None if kind in (None, "no_vocab", "none") else f"in the file ({kind!s:.40})"
        report.chat_template = "in the file" if gguf_templates(gguf.metadata) else None
        return
    folder = path.parent if path.is_file() else path
    report.tokenizer = next((name for name in _TOKENIZERS if (folder / name).is_file()), None)
    for name in ("chat_template.jinja", "chat_template.json"):
        if (folder / name).is_file():
            report.chat_template = name
            return
    if read_json(folder / "tokenizer_config.json").get("chat_template"):
        report.chat_template = "tokenizer_config.json"


def _known(report: Report, known: Outline, config: EngineConfig) -> None:
    """What the declared model says."""
    arch = known.arch
    family = registry.lookup(arch.architecture)
    report.architecture = arch.architecture
    report.family = family.declare.__module__.rpartition(".")[2]
    report.dtype, report.runs_in = arch.dtype or report.dtype, known.dtype
    if known.stored is not None:
        report.quantization = _quantization(arch.quantization, known.stored.method)
    report.shape = {
        "layers": arch.layers,
        "hidden": arch.hidden,
        "heads": arch.heads,
        "kv_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "vocabulary": arch.vocab,
    }
    report.parameters, report.active_parameters = _counted(known.decoder, arch)
    report.context_limit = context_limit(arch)
    report.memory = _memory(known, config, report.context_limit)


def _counted(decoder: Decoder, arch: Arch) -> tuple[int, int]:
    """(all parameters, those that one token uses)."""
    total = active = 0
    chosen = arch.config.get("num_experts_per_tok") or arch.config.get("experts_per_token")
    for _, param in decoder.named_params():
        size = math.prod(param.shape)
        total += size
        count = param.shape[0] if param.kind == "experts" else 0
        active += size * min(int(chosen), count) // count if count and chosen else size
    return total, active


def _memory(known: Outline, config: EngineConfig, limit: int) -> Memory:
    specs = known.decoder.attention_specs()
    per_token = bytes_per_token(specs, known.precision.cache)
    free, weights = machine.free_memory_bytes(), known.weight_bytes
    process = _BASE_BYTES + _step_bytes(known.arch, config)
    room = max(free - weights - process, 0)
    budget = CacheBudget(
        specs,
        config.block_size,
        known.precision.cache,
        max(free - weights, 0),
        config.kv_cache_memory_bytes,
        config.memory_share,
        config.num_blocks_override,
    )
    block = config.block_size
    largest = min(limit, room // max(per_token, 1) // block * block)
    default = min(limit, budget.context_tokens)
    context = config.max_model_len or max(default, 0)
    kv = -(-context // block) * block * per_token
    return Memory(free, weights, process, per_token, context, kv, largest, default)


def _step_bytes(arch: Arch, config: EngineConfig) -> int:
    """About what a step's values take: float32 rows of the widest layer, and logits."""
    rows = min(config.max_num_batched_tokens or STEP_TOKENS, 1 << 16)
    width = 4 * arch.hidden + 3 * arch.ffn + 2 * arch.heads * arch.head_dim
    return 4 * (rows * width + config.max_num_seqs * arch.vocab)


def _check_tensors(known: Outline, checkpoint: Checkpoint | GgufCheckpoint) -> None:
    """Raise CheckpointError for tensors that are missing, left over or of another shape."""
    load(known.decoder, checkpoint, known.dtype, roundings=known.roundings, stored=known.stored)
    if isinstance(checkpoint, GgufCheckpoint):
        return
    present = set(checkpoint.names())
    for _, param in known.decoder.named_params():
        source = names.sources(known.decoder, param)
        for part, spellings in enumerate(source.names):
            name = next((name for name in spellings if name in present), None)
            if name is None or (
                known.stored and known.stored.suffixes(name.removesuffix(".weight"), present)
            ):
                continue
            _, shape = checkpoint.described(name)
            if shape != (expected := source.shape(part, param)):
                raise CheckpointError(
                    f"Tensor {name} in {checkpoint.file_of(name).name} has shape {list(shape)}, expected "
                    f"{list(expected)}.",
                    hint="Does config.json belong to this checkpoint?",
                )


def _check_memory(report: Report, config: EngineConfig) -> None:
    memory = report.memory
    if memory is None:
        return
    wanted = config.max_model_len or 2
    if wanted > report.context_limit:
        raise OutOfMemory(f"--max-model-len {wanted} is more than the model's {report.context_limit} tokens.")
    if memory.largest_context < wanted:
        needed = memory.weights + memory.process + wanted * memory.kv_per_token
        raise OutOfMemory(
            f"It needs {needed / 2**30:.1f} GiB of memory for {wanted:,} tokens, and "
            f"{memory.free / 2**30:.1f} GiB are free.",
            hint="Use --quantization int8 or int4, a smaller context, or a smaller checkpoint.",
        )


def _role(name: str) -> str:
    return next((role for role, pattern in _ROLES if re.search(pattern, name)), "other")


def _groups(
    checkpoint: Checkpoint | GgufCheckpoint | None, known: Outline | None, quantization: str | None
) -> list[Group]:
    """The tensors by purpose and format, the largest first."""
    found: dict[tuple[str, str], Group] = {}

    def add(role: str, kind: str, weights: int, nbytes: int) -> None:
        group = found.setdefault((role, kind), Group(role, kind))
        group.tensors += 1
        group.weights += weights
        group.bytes += nbytes

    if isinstance(checkpoint, GgufCheckpoint):
        for name in checkpoint.names():
            entry = checkpoint.entry(name)
            add(_role(name), entry.type.name, math.prod(entry.shape), entry.nbytes)
    elif checkpoint is not None:
        packed = _packed_stems(checkpoint.names())
        for name in checkpoint.names():
            dtype, shape = checkpoint.described(name)
            nbytes = math.prod(shape) * _width(dtype)
            if _BESIDE.sub("", name) in packed and not name.endswith(".bias"):
                add(_role(name), quantization or "quantized", 0, nbytes)
            else:
                add(_role(name), dtype, math.prod(shape), nbytes)
        if known is not None:
            _count_packed(found.values(), known.decoder)
    return sorted(found.values(), key=lambda group: -group.bytes)


def _packed_stems(tensors: Iterable[str]) -> set[str]:
    """Modules that are stored quantized."""
    found = set()
    for name in tensors:
        if name.endswith(_PACKED):
            found.add(_BESIDE.sub("", name))
    return found


def _count_packed(groups: Iterable[Group], decoder: Decoder) -> None:
    """How many numbers quantized groups stand for: what their purpose has in all, without the plain ones."""
    for group in groups:
        if group.weights:
            continue
        whole = sum(math.prod(p.shape) for name, p in decoder.named_params() if _role(name) == group.role)
        group.weights = max(
            whole - sum(g.weights for g in groups if g.role == group.role and g is not group), 0
        )


def _width(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) // 8 if bits else 1
