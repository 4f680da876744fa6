"""Rollout actors: the semantic-level CoT with vLLM, the token-level CoT with a sampler of our own.

sampler, cached_llama   core (torch and transformers only): paired guided decoding over a preallocated KV cache
batch_loop              one thread that drives an engine: calls stream in, one batch, one weight version per request
fused_linear, cuda_graph  its layers: matrices fused on shared memory, the step as one CUDA graph
image_actor             shell around the sampler and the VQ decoder
semantic                vLLM over the language model of a Janus checkpoint, in the actor's own process
semantic_actor          shell around it
config, requests, errors  settings, requests and results, errors

cluster/ (above) makes Ray actors of both shells; policy/ (prompts, guidance) and transport/ (segments, weight
channel) are below. Both shells have coroutine methods for work and plain methods for the rest:

    actor = ImageActor(policy_config, image_config)
    outputs = await actor.sample([ImageRequest(prompt, cot, seed), ...])
    version = await actor.apply_weights(published)

Gotchas: vLLM reads its environment at import, so a process must not import vLLM before it creates a `SemanticActor`.
A `SemanticActor` has no weights until the first `apply_weights`. After an `EngineError` the process must be replaced.
"""
