"""What the policy is and is asked; needs torch and transformers only.

prompts     records of T2I-R1's schema           guidance   logits to the distribution that is sampled and optimised
config      checkpoint, number format, wording   scoring    teacher-forced log-probs of both segments
packing     rows of tokens as one line           seeds      one seed a member
tokens      token layout, prompts of both stages pictures   image tokens to pixels
janus       load and save a policy               lora       adapters as they travel and are merged
checkpoint  read either layout, tensor by tensor export     write either layout, tensor by tensor
tiny        random checkpoints, as small as asked errors    what can be wrong with a checkpoint

Under them: `original_layout` and `original_config` know the names, shapes and config of Janus's original layout,
`weight_files` the files. Gotcha: take the tokenizer from `checkpoint.load_tokenizer`, never from AutoTokenizer.
"""
