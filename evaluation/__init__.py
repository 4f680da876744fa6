"""What a policy is worth: held-out prompts, scored."""
