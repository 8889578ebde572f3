"""OpenAI's Responses API: items in, items out, kept for a while so that the next request can go on."""
