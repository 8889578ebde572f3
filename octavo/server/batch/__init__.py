"""OpenAI's files and batches: many requests in one file, worked on when nobody else waits."""
