"""SFT on tokens, on stored or live logits, and on-policy."""
