"""The plain data that crosses Octavo's boundaries: no behaviour beyond validation, no tensors."""
