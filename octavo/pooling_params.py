"""What a model that pools is asked for, under the module name that scripts for vLLM import."""

from octavo.types.pooling import PoolingParams

__all__ = ["PoolingParams"]
