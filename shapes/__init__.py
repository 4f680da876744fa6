"""The shapes world: BiCoT-GRPO at laptop size, through the same parts as the real thing.

48x48 pictures of coloured shapes, prompts in T2I-R1's record format (`prompts`), rewards behind the same interface
as the real ones (`rewards`), a judge of its own (`judge`), and a warm-started tiny Janus (`checkpoint/`, made by
`warm_start`). It may import actors, rewards and policy; nothing but the cluster may import it.

Gotchas: ask the checkpoint with `tokenizer.TEMPLATES`, the wording it was trained with; evaluate at the guidance
scale that is trained with (2); pictures must be 48x48.
"""
