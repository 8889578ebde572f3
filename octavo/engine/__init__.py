"""Scheduling over a paged KV cache: plan, run, commit. Pure Python, no tensors."""
