"""Talking to a model: over HTTP, on a page, in the terminal."""
