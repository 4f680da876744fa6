"""The weight channel: the learner publishes a version, actors take it.

`channel` is the interface, `object_store` the default transport (Ray objects), `broadcast` the other one (one
broadcast to all, NCCL's or on CPUs gloo's); `checksum` guards every bucket, and `vllm_engine` puts what was received
into a vLLM engine. Only trained tensors travel, under their Janus `state_dict` names, or as a LoRA adapter
(`policy.lora`), which actors merge.

Gotchas: an object belongs to the process that put it, so a dead learner takes its published weights with it; and a
received tensor is a read-only view of shared memory: copy it, never write to it.
"""
