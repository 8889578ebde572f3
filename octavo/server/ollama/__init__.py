"""Ollama's API below /api: a translation to and from Jobs, like every door."""
