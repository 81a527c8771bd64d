"""Forms of answers with rules of their own: dates, matrices, formulas of chemistry, words."""
