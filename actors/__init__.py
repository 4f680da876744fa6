"""Rollout actors: the semantic-level CoT with vLLM, the token-level CoT with a sampler of our own.

sampler, cached_llama   core (torch and transformers only): paired guided decoding over a preallocated KV cache
batch_loop              one thread that drives an engine: streams of calls in, one batch, one weight version a request
fused_linear, cuda_graph  its layers: matrices fused on shared memory, the step as one CUDA graph
image_actor             shell around the sampler and the VQ decoder
semantic                vLLM over the language model of a Janus checkpoint, in the actor's own process
semantic_actor          shell around it
config, requests, errors  what a run configures, what callers ask and get, what can go wrong

Above stands cluster/, which makes Ray actors of both shells; below, policy/ (prompts, guidance) and transport/
(segments, weight channel). Both shells have coroutine methods for work and plain ones for the rest:

    actor = ImageActor(policy_config, image_config)
    outputs = await actor.sample([ImageRequest(prompt, cot, seed), ...])
    version = await actor.apply_weights(published)

Gotchas: vLLM reads its environment when it is imported, so a process that makes a `SemanticActor` must not import it
before; a `SemanticActor` has no weights until the first `apply_weights`; after an `EngineError` the process has to be
replaced.
"""
