"""Where a model's Params stand in a checkpoint: tables from our module paths to the checkpoint's names.

A table is written as a reader would say it: `"blocks.{i}.attention.qkv":
"model.layers.{i}.self_attn.{q,k,v}_proj"`. `{i}` is the layer's number, braces with commas mean "these
tensors, one below the other, in this order". The suffix (`weight`, `bias`) is not part of the table: it
comes from the format.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from octavo.layers.decoder import Decoder
from octavo.models import registry
from octavo.ops.contract import Param

_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")
_LAYER = re.compile(r"\.(\d+)\.")

STACKED: dict[str, Callable[[int], slice]] = {
    "all": lambda rows: slice(0, rows),
    "first": lambda rows: slice(0, rows // 2),
    "second": lambda rows: slice(rows // 2, rows),
    "even": lambda rows: slice(0, rows, 2),
    "odd": lambda rows: slice(1, rows, 2),
}
"""Which rows of a stacked tensor's matrices are meant."""


@dataclass(frozen=True)
class Source:
    """What the load pass reads for one Param: the tensors to stand one below the other.

    `names[p]` are the spellings of part p, best first; the first that the checkpoint has is meant. Part p
    has the shape `(rows[p], *param.shape[1:])`, or with `transpose` (a Conv1D's weight) that shape turned
    round. Of `experts` part p is expert p; a spelling that ends with `:` and a word of STACKED is a tensor
    of all experts [experts, ...], which alone `transpose` then speaks of.
    """

    names: tuple[tuple[str, ...], ...]
    rows: tuple[int, ...]
    transpose: bool = False
    experts: bool = False

    def shape(self, part: int, param: Param) -> tuple[int, ...]:
        """The shape that the checkpoint must give part `part` of `param`."""
        if self.experts:
            return param.shape[1:]
        shape = (self.rows[part], *param.shape[1:])
        return shape[::-1] if self.transpose else shape


@dataclass(frozen=True)
class Names:
    """A family's names.

    `table`: our path without its last word -> the checkpoint's. `roots`: spellings of the first word(s) of
    the table's names, best first; the table is written with `roots[0]`, and a checkpoint of the bare model
    or of a wrapper says another. `transposed`: our paths (last words) whose weights are stored [in, out].
    `unused`: regular expressions of tensors that may be left over without complaint; they match anywhere in
    the name. `|` in the table stands between spellings. `experts`: spellings of what stands there once for
    each expert (our path with its last word), `{e}` the expert's number, or `:` and a word of STACKED behind.
    """

    table: dict[str, str]
    roots: tuple[str, ...] = ("model.", "", "language_model.model.", "model.language_model.")
    transposed: tuple[str, ...] = ()
    unused: tuple[str, ...] = (r"rotary_emb\.inv_freq$",)
    experts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def but(
        self,
        table: dict[str, str],
        *,
        unused: tuple[str, ...] = (),
        experts: dict[str, tuple[str, ...]] | None = None,
        transposed: tuple[str, ...] = (),
    ) -> Names:
        """These names with some replaced, and more tensors that may be left over."""
        return replace(
            self,
            table={**self.table, **table},
            unused=self.unused + unused,
            experts=self.experts | (experts or {}),
            transposed=self.transposed + transposed,
        )


LLAMA = Names(
    {
        "embed": "model.embed_tokens",
        "blocks.{i}.attention_norm": "model.layers.{i}.input_layernorm",
        "blocks.{i}.attention.qkv": "model.layers.{i}.self_attn.{q,k,v}_proj",
        "blocks.{i}.attention.q_norm": "model.layers.{i}.self_attn.q_norm",
        "blocks.{i}.attention.k_norm": "model.layers.{i}.self_attn.k_norm",
        "blocks.{i}.attention.out": "model.layers.{i}.self_attn.o_proj",
        "blocks.{i}.mlp_norm": "model.layers.{i}.post_attention_layernorm",
        "blocks.{i}.mlp.gate_up": "model.layers.{i}.mlp.{gate,up}_proj",
        "blocks.{i}.mlp.down": "model.layers.{i}.mlp.down_proj",
        "norm": "model.norm",
        "head": "lm_head",
    }
)
"""The names that Llama made common; other families say what they change: `LLAMA.but({...})`."""


POOLED = {
    "pooling.score": "score|classifier",
    "pooling.modules.{i}.linear": "sentence_transformers.{i}.linear",
}
"""The names of a head in place of the output matrix."""

_STACK = "model.layers.{i}.mlp.experts"
QWEN_EXPERTS: dict[str, tuple[str, ...]] = {
    "blocks.{i}.mlp.gate": (f"{_STACK}.{{e}}.gate_proj", f"{_STACK}.gate_up_proj:first"),
    "blocks.{i}.mlp.up": (f"{_STACK}.{{e}}.up_proj", f"{_STACK}.gate_up_proj:second"),
    "blocks.{i}.mlp.down": (f"{_STACK}.{{e}}.down_proj", f"{_STACK}.down_proj:all"),
}
"""The names that Qwen's experts made common."""


def sources(model: Decoder, param: Param) -> Source:
    """Where `param` (already named by declare) stands. KeyError when the family's table forgets it."""
    names = names_of(model)
    key, number = key_of(param)
    suffix = param.name.rpartition(".")[2]
    word = suffix.removesuffix("_bias")
    if f"{key}.{word}" in names.experts:
        spellings = names.experts[f"{key}.{word}"]
        bias = suffix.endswith("_bias")
        count = param.shape[0]
        numbered = [one.replace("{i}", number) for one in spellings]
        spelled = tuple(_expert(numbered, e, bias, names.roots) for e in range(count))
        return Source(spelled, (1,) * count, word in names.transposed and not bias, experts=True)
    written, *others = names.table[key].replace("{i}", number).split("|")
    stems = expand(written)
    parts = param.parts if len(stems) > 1 else (param.shape[0],)
    if len(parts) != len(stems):
        raise KeyError(f"{param.name}: {len(parts)} parts, but {written} names {len(stems)} tensors")
    extra = _tied_spellings(model, param, names)
    more = tuple(name for other in others for name in _spell(f"{other}.{suffix}", names.roots))
    spelled = tuple(_spell(f"{stem}.{suffix}", names.roots) + more + extra for stem in stems)
    transpose = len(param.shape) == 2 and key.rsplit(".", 1)[-1] in names.transposed
    return Source(spelled, parts, transpose)


def key_of(param: Param) -> tuple[str, str]:
    """(a table's key for a Param that declare has named, the layer's number or nothing)."""
    module = param.name.rpartition(".")[0]
    number = _LAYER.search(f"{module}.")
    return (_LAYER.sub(".{i}.", f"{module}.", count=1)[:-1], number.group(1)) if number else (module, "")


def names_of(model: Decoder) -> Names:
    """The names of the model's family."""
    family = registry.lookup(model.arch.architecture)
    found = (family.names, *family.others)[model.spelling]
    return replace(found, table={**POOLED, **found.table})


def choose_spelling(model: Decoder, present: set[str]) -> None:
    """Settle on the first of the family's names that the checkpoint's tensors have."""
    others = registry.lookup(model.arch.architecture).others
    for model.spelling in range(len(others) + 1 if others else 0):
        found = (sources(model, param) for _, param in model.named_params())
        if all(present.intersection(part) for source in found for part in source.names):
            return
    model.spelling = 0


def may_be_unused(model: Decoder, name: str) -> bool:
    """True for a checkpoint tensor that no Param reads and that nobody misses."""
    names = names_of(model)
    if (model.arch.tied or model.head is None) and name.endswith("lm_head.weight"):
        return True
    return any(re.search(pattern, name) for pattern in names.unused)


def expand(written: str) -> tuple[str, ...]:
    """The names that a table's entry stands for: one for each word in its braces."""
    found = _BRACES.search(written)
    if not found:
        return (written,)
    head, tail = written[: found.start()], written[found.end() :]
    return tuple(f"{head}{word}{tail}" for word in found.group(1).split(","))


def _expert(spellings: list[str], expert: int, bias: bool, roots: tuple[str, ...]) -> tuple[str, ...]:
    """All spellings of one expert's weight or bias."""
    found: list[str] = []
    for spelling in spellings:
        stem, colon, rows = spelling.replace("{e}", str(expert)).partition(":")
        suffix = ("_bias" if bias else "") if colon else ".bias" if bias else ".weight"
        found += [f"{name}{colon}{rows}" for name in _spell(f"{stem}{suffix}", roots)]
    return tuple(found)


def _spell(name: str, roots: tuple[str, ...]) -> tuple[str, ...]:
    """All spellings of a name: under each root, or for a name outside the root (lm_head) each wrapper's
    prefix.
    """
    if name.startswith(roots[0]):
        rest = name[len(roots[0]) :]
        return tuple(root + rest for root in roots)
    return (name, f"language_model.{name}", f"model.{name}")


def _tied_spellings(model: Decoder, param: Param, names: Names) -> tuple[str, ...]:
    """A tied table is found under the head's name when the checkpoint kept only that."""
    if model.head is None or model.head.weight is not param or param.name.startswith("head."):
        return ()
    return _spell(f"{names.table['head']}.weight", names.roots)
