"""The trajectory group and its wire format, the Redis buffer, and the weight channel.

    rollout side ── TrajectoryBuffer.append ──> Redis Stream ── TrajectoryBuffer.claim ──> learner
    actors <── WeightReceiver.receive ── Ray objects, one a bucket <── WeightPublisher.publish ── learner

- `trajectory`: the types. `wire`: their bytes (JSON header and safetensors; nothing that arrives is ever executed).
- `buffer`: append, claim, acknowledge, rewind; `stream` and `buffer_scripts` are the Redis under it.
- `redis_server`: a run's own redis-server, and the check of a given URL.
- `weights/`: publisher, receiver, and the way into vLLM.
- `errors`: all that is raised from here. `config`: the settings.

Gotchas: a claimed group still counts against the buffer's capacity until it is acknowledged. A buffer object belongs
to one process. `weights.vllm_engine` imports vllm and `weights.object_store` ray; nothing else here does.
"""
