"""The weight channel: the learner publishes a version, and actors apply it.

`channel` is the interface, `object_store` the default transport (Ray objects), `broadcast` the other one (one
broadcast to all actors by NCCL, or by gloo on CPUs). `checksum` checks every bucket, and `vllm_engine` loads received
weights into a vLLM engine. Only trained tensors travel, under their Janus `state_dict` names, or as a LoRA adapter
(`policy.lora`), which actors merge.

Gotchas: an object belongs to the process that put it, so published weights are lost when the learner dies. A received
tensor is a read-only view of shared memory: copy it, never write to it.
"""
