"""The report of a run: its numbers, its plots, its page."""
