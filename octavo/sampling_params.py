"""How tokens are drawn, under the module name that scripts for vLLM import."""

from octavo.types.beam import BeamSearchParams
from octavo.types.repetition import RepetitionDetectionParams
from octavo.types.sampling import RequestOutputKind, SamplingParams
from octavo.types.structured import GuidedDecodingParams, StructuredOutputsParams

__all__ = [
    "BeamSearchParams",
    "GuidedDecodingParams",
    "RepetitionDetectionParams",
    "RequestOutputKind",
    "SamplingParams",
    "StructuredOutputsParams",
]
