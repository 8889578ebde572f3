"""Pass 3, shard: cut the model along the axes that its Params declare, so that each rank holds its part."""

from __future__ import annotations

from octavo.errors import ConfigError
from octavo.layers.decoder import Decoder


def shard(model: Decoder, rank: int = 0, size: int = 1) -> Decoder:
    """Rank `rank`'s part of `size`: the model itself for one rank.

    Raises ConfigError for more: the threads of one process share every weight already, and Octavo does not
    run a model over several processes.
    """
    if size < 1 or not 0 <= rank < size:
        raise ConfigError(f"Rank {rank} of {size} does not exist.", hint="Ranks count from 0 up to size - 1.")
    if size > 1:
        raise ConfigError(
            f"A tensor-parallel size of {size} is not supported: one process uses all cores of the machine.",
            hint="Leave out --tensor-parallel-size.",
        )
    return model
