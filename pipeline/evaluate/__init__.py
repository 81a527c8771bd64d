"""Metrics of a run, and its report: numbers, plots, page."""
