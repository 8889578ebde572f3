"""A stand-in for the package ``vllm``: ``from vllm import LLM, SamplingParams`` gets Octavo's classes.

``python -m octavo.as_vllm script.py`` runs a script with it; :func:`install` puts it in place in a program.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from octavo import NAMES

VLLM_VERSION = "0.32.0"
"""The release whose names these are; scripts compare it."""

_SAMPLING = dict.fromkeys(
    (
        *("SamplingParams", "RequestOutputKind", "BeamSearchParams", "StructuredOutputsParams"),
        *("GuidedDecodingParams", "RepetitionDetectionParams"),
    ),
    "octavo.sampling_params",
)
_POOLED = (
    *("PoolingOutput", "PoolingRequestOutput", "EmbeddingOutput", "EmbeddingRequestOutput"),
    *("ClassificationOutput", "ClassificationRequestOutput", "ScoringOutput", "ScoringRequestOutput"),
)
_OUTPUTS = dict.fromkeys(("RequestOutput", "CompletionOutput", "RequestMetrics", *_POOLED), "octavo.outputs")
_BEAMS = dict.fromkeys(("BeamSearchOutput", "BeamSearchSequence"), "octavo.outputs")
_LOGPROBS = dict.fromkeys(("Logprob", "FlatLogprobs"), "octavo.logprobs")
_ARGS = dict.fromkeys(("EngineArgs", "AsyncEngineArgs"), "octavo.llm")
_PROMPTS = dict.fromkeys(("TextPrompt", "TokensPrompt", "PromptType"), "octavo.inputs")
_ENGINE = {"LLMEngine": "octavo.llm"}
_ASYNC = dict.fromkeys(("AsyncLLM", "AsyncLLMEngine"), "octavo.llm")
_CONFIGS = dict.fromkeys(
    ("PoolerConfig", "CompilationConfig", "StructuredOutputsConfig", "KVTransferConfig"),
    "octavo.llm.configs",
)
_UTILS = dict.fromkeys(
    ("FlexibleArgumentParser", "random_uuid", "init_logger", "UsageContext", "Counter"), "octavo.utils"
)
_CLEANUP = {"cleanup_dist_env_and_memory": "octavo.utils"}
_METRICS = dict.fromkeys(("Counter", "Gauge", "Histogram", "Metric", "Vector"), "octavo.types.metrics")

MODULES: dict[str, dict[str, str]] = {
    "vllm": NAMES,
    "vllm.sampling_params": _SAMPLING,
    "vllm.outputs": _OUTPUTS,
    "vllm.pooling_params": {"PoolingParams": "octavo.pooling_params"},
    "vllm.beam_search": _BEAMS,
    "vllm.sequence": {"RequestMetrics": "octavo.outputs", **_LOGPROBS},
    "vllm.logprobs": _LOGPROBS,
    "vllm.inputs": _PROMPTS,
    "vllm.inputs.data": _PROMPTS,
    "vllm.config": _CONFIGS,
    "vllm.distributed": _CLEANUP,
    "vllm.distributed.parallel_state": _CLEANUP,
    "vllm.engine": {},
    "vllm.engine.arg_utils": _ARGS,
    "vllm.engine.llm_engine": _ENGINE,
    "vllm.engine.async_llm_engine": _ASYNC,
    "vllm.v1": {},
    "vllm.v1.engine": {},
    "vllm.v1.engine.llm_engine": _ENGINE,
    "vllm.v1.engine.async_llm": _ASYNC,
    "vllm.v1.metrics": {},
    "vllm.v1.metrics.reader": _METRICS,
    "vllm.entrypoints": {},
    "vllm.entrypoints.llm": {"LLM": "octavo.llm"},
    "vllm.entrypoints.api_server": {},
    "vllm.entrypoints.openai": {},
    "vllm.entrypoints.openai.api_server": {},
    "vllm.utils": _UTILS,
    "vllm.utils.argparse_utils": _UTILS,
    "vllm.utils.counter": _UTILS,
    "vllm.logger": _UTILS,
    "vllm.lora": {},
    "vllm.lora.request": {"LoRARequest": "octavo.lora.request"},
    "vllm.usage": {},
    "vllm.usage.usage_lib": _UTILS,
    "vllm.version": {},
}
"""Module name to its names and the modules that they come from."""

_RUNNABLE = frozenset({"vllm.entrypoints.api_server", "vllm.entrypoints.openai.api_server"})


def install() -> None:
    """Make ``import vllm`` find the stand-in in this process, before any installed vllm; idempotent."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Answers for ``vllm`` and everything below it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a stand-in module; ModuleNotFoundError for a part of vllm that has none."""
        if fullname != "vllm" and not fullname.startswith("vllm."):
            return None
        if fullname not in MODULES:
            known = ", ".join(sorted(MODULES))
            raise ModuleNotFoundError(
                f"Octavo's stand-in for vllm has no {fullname}; it has {known}.", name=fullname
            )
        if fullname in _RUNNABLE:
            return importlib.util.spec_from_file_location(fullname, _source_of(fullname))
        parent = any(name.startswith(fullname + ".") for name in MODULES)
        return importlib.machinery.ModuleSpec(fullname, _Loader(), is_package=parent)


def _source_of(fullname: str) -> str:
    """The file of the module of ours that `fullname` is, for ``runpy``."""
    spec = importlib.util.find_spec("octavo." + fullname.removeprefix("vllm."))
    assert spec is not None
    assert spec.origin is not None
    return spec.origin


class _Loader(importlib.abc.Loader):
    """Gives a stand-in module its names; each is looked up when it is first used."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Python's own kind of module."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module."""
        names = MODULES[module.__name__]
        from octavo import __version__

        version = f"{VLLM_VERSION}+octavo.{__version__}"
        namespace: dict[str, Any] = vars(module)
        namespace["__all__"] = list(names)
        namespace["__version__"] = version
        namespace["__version_tuple__"] = tuple(int(part) for part in VLLM_VERSION.split("."))

        def find(name: str) -> Any:
            """The object that `name` stands for."""
            if name not in names:
                raise AttributeError(
                    f"Octavo's stand-in for {module.__name__} has no {name!r}; it has {', '.join(names)}."
                )
            found = getattr(importlib.import_module(names[name]), name)
            namespace[name] = found
            return found

        namespace["__getattr__"] = find
