"""How models are trained. Nothing here imports transformer_lens."""
