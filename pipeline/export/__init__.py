"""A student as GGUF: the file, what runs it, and the proof that it answers as the checkpoint."""
