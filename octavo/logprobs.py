"""Log-probabilities, under the module name that scripts for vLLM import."""

from octavo.types.logprobs import FlatLogprobs, Logprob

__all__ = ["FlatLogprobs", "Logprob"]
