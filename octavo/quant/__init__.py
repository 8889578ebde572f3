"""Checkpoint formats: which Linear is stored how. A new format is one file here."""
