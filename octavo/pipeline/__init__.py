"""The text side: template, tokenizer, detokenizer, stopping, and the service behind every door."""
