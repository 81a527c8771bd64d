"""vLLM servers and engines, and the processes they live in."""
