"""The shapes world: BiCoT-GRPO at laptop size, with the same parts as a full run.

48x48 pictures of coloured shapes, prompts in T2I-R1's record format (`prompts`), rewards with the interface of the
real ones (`rewards`), an independent judge (`judge`), and a warm-started tiny Janus (`checkpoint/`, made by
`warm_start`). This room may import actors, rewards and policy; the rooms above may import it.

Gotchas: prompt the checkpoint with `tokenizer.TEMPLATES`, the wording of its training; evaluate at the guidance scale
of training (2); pictures must be 48x48.
"""
