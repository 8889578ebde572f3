"""The doors to models that pool: embeddings, labels, scores."""
