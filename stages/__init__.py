"""limbeck's stages: one thin module each, joined in graph.py."""
