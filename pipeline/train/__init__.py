"""What SFT and GRPO share around TRL."""
