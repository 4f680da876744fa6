"""The policy: its prompts, tokens, checkpoints and distribution. Needs torch and transformers only.

prompts     records of T2I-R1's schema           guidance   logits to the distribution that is sampled and optimised
config      checkpoint, number format, wording   scoring    teacher-forced log-probs of both segments
packing     rows of tokens packed into one line  seeds      one seed per member
tokens      token layout, prompts of both stages pictures   image tokens to pixels
janus       load and save a policy               lora       adapters as they travel and are merged
checkpoint  read either layout, tensor by tensor export     write either layout, tensor by tensor
tiny        tiny random checkpoints              errors     errors of a policy's files

Under them: `original_layout` and `original_config` know the names, shapes and config of Janus's original layout,
`weight_files` the files. Gotcha: take the tokenizer from `checkpoint.load_tokenizer`, never from AutoTokenizer.
"""
