"""Blocks that families assemble: declarations of Params and the ops that read them."""
