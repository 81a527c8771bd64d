"""Scores by models where there is no gold: reward models, rubrics, comparisons."""
