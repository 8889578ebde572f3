"""Families: each is a function from an Arch to layers, and a table of names."""
