"""What the policy is and is asked; needs torch and transformers only.

prompts     records of T2I-R1's schema           guidance   logits to the distribution that is sampled and optimised
config      checkpoint, number format, wording   scoring    teacher-forced log-probs of both segments
tokens      token layout, prompts of both stages pictures   image tokens to pixels
janus       load, save and make a checkpoint     seeds      one seed a member
"""
