"""The five passes from a checkpoint to something that runs: declare, quantize, shard, load, bind."""
