"""What is left out, and why: filter rules, features, near-duplicates, contamination."""
