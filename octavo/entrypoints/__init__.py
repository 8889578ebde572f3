"""Module names that people type from vLLM's documentation."""
