"""Evaluation of a policy.

held_out   a split of held-out prompts: drawn and scored with the same seeds every time; keeps samples

The caller passes in a `held_out.Painter`, so this room depends on neither pools nor Ray.
"""
