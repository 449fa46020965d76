"""Findings about a transformer without positional embeddings, as tests that can fail."""
