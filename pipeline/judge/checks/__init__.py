"""Looks at the judge itself: attacks, a second grader, why a verdict was given."""
