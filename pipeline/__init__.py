"""The parts limbeck's stages are made of; nothing here imports a stage or runs on import."""
