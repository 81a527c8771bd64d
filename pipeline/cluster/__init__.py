"""Runs a recipe on machines that a scheduler lends: submission, requeue, several nodes."""
