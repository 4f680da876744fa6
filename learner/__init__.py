"""BiCoT-GRPO: from trajectory groups to new weights.

core   advantages   rewards of a group to advantages        objective   ratio, clip, k3 KL; sums over tokens
       batching     rows to balanced micro-batches          schedule    learning rate over the steps
       config       settings; imports no torch
shell  engine       DeepSpeed steps on N ranks              zero          how DeepSpeed is set up
       loading      the engine of a checkpoint, in parts    scorer        the module that it wraps
       adapter      LoRA: what trains instead of weights    export        the policy, tensor by tensor
       checkpoint   everything a run is resumed from        process_group rendezvous with deadlines
       rank         LearnerRank, which a Ray actor hosts    mfu           FLOPs of a step by what devices could do

Gotchas: nearly every method of the engine is a collective, so after an error on one rank the others wait until their
deadline. Losses are sums, and the engine divides them by the tokens of the whole batch: never take a mean over a
micro-batch. The reference policy has the weights of the policy's checkpoint, also after a resume. With LoRA it is the
model without its adapter; there is no second copy.
"""
