"""`limbeck view`: a local page over traces and runs, and the verdicts people give there."""
