"""LoRA adapters: read from PEFT's files, named, and kept where a model computes with them."""
