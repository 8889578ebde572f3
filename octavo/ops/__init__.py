"""The op set: what a forward pass may call, and the four ways to run it (reference, torch, trace, native)."""
