"""From one file format to another: Hugging Face folders to GGUF."""
