"""Runs programs against tests in a sandbox."""
