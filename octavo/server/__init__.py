"""The HTTP doors: each parses bytes into a Job and renders Events into bytes."""
