"""The student: tokenizer, template and loss mask, packing, sampling, checks."""
