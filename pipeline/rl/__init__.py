"""Refinement by GRPO."""
