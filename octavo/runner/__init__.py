"""The tensor side of a step: arrays, forward, sampling."""
