"""Configuration, built once: the engine's (flags, environment), the checkpoint's, and generation defaults."""
