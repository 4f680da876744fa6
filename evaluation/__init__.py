"""What a policy is worth.

held_out   a split of held-out prompts: drawn and scored with the same seeds every time, its samples kept

Who draws is handed in (`held_out.Painter`), so that nothing here knows of pools or Ray.
"""
