"""What SFT and GRPO share round TRL."""
