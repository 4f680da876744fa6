"""The image sampler against transformers, against itself in other batches, and against the distribution it claims."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from actors.cached_llama import HAS_TRITON, CachedLlama, _attend
from actors.errors import PromptError
from actors.sampler import ImageSampler, SampledImage, SampleRequest
from policy.config import PolicyConfig
from policy.janus import Policy, make_policy
from policy.scoring import Scorer, ScoreRows, SegmentRows
from policy.tiny import tiny_janus

PROMPTS = [
    "a red circle",
    "a",
    "two green circle and a blue square left of the red square : a red circle and a plan of the two square",
    "the blue square above a green circle , two red circle",
]


def _requests(policy: Policy, count: int, seed: int = 0) -> list[SampleRequest]:
    """Requests of mixed prompt lengths."""
    ids = [torch.tensor(policy.prompts.image_prompt(PROMPTS[i % len(PROMPTS)], "")) for i in range(count)]
    return [SampleRequest(prompt, seed + number) for number, prompt in enumerate(ids)]


def _equal(one: SampledImage, other: SampledImage) -> bool:
    return torch.equal(one.token_ids, other.token_ids)


def _close(one: SampledImage, other: SampledImage, tolerance: float) -> None:
    torch.testing.assert_close(one.guided_logprobs, other.guided_logprobs, atol=tolerance, rtol=0)
    torch.testing.assert_close(one.conditional_logprobs, other.conditional_logprobs, atol=tolerance, rtol=0)


def _transformers_greedy(policy: Policy, prompt_ids: Tensor, scale: float) -> Tensor:
    layout = policy.layout
    policy.model.generation_config.generation_kwargs = {"boi_token_id": layout.boi}
    ids = prompt_ids.unsqueeze(0)
    return policy.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_mode="image",
        do_sample=False,
        guidance_scale=scale,
        bos_token_id=layout.bos,
        pad_token_id=layout.pad,
    )[0]


@pytest.mark.parametrize("scale", [2.0, 5.0])
def test_greedy_equals_transformers_generate(tiny_policy: Policy, scale: float) -> None:
    requests = _requests(tiny_policy, 8)
    sampled = ImageSampler(tiny_policy, 3, scale, temperature=0).sample(requests)
    for request, image in zip(requests[:4], sampled, strict=False):
        expected = _transformers_greedy(tiny_policy, request.prompt_ids, scale)
        assert image.token_ids.tolist() == expected.tolist()
    assert len({tuple(image.token_ids.tolist()) for image in sampled[:4]}) == 4, "prompts have to matter"
    assert len(set(sampled[0].token_ids.tolist())) > 2, "tokens have to vary"


def test_greedy_equals_transformers_with_shared_key_heads(tiny_policy: Policy) -> None:
    torch.manual_seed(3)
    model = tiny_janus(
        tiny_policy.tokenizer, hidden=64, heads=4, kv_heads=2, layers=2, image_vocab=32, image_size=16,
        vq_multipliers=(1, 1, 1),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            parameter.mul_(4)
    policy = make_policy(model, tiny_policy.tokenizer, PolicyConfig(checkpoint=""))
    request = _requests(policy, 3)[2]
    expected = _transformers_greedy(policy, request.prompt_ids, 3.0)
    assert ImageSampler(policy, 4, 3.0, temperature=0).sample([request])[0].token_ids.tolist() == expected.tolist()


@pytest.mark.parametrize(("scale", "temperature"), [(2.0, 1.0), (5.0, 0.7), (1.0, 1.3)])
def test_logprobs_equal_the_learners(tiny_policy: Policy, scale: float, temperature: float) -> None:
    requests = _requests(tiny_policy, 7)
    sampled = ImageSampler(tiny_policy, 4, scale, temperature).sample(requests)
    rows = SegmentRows(
        [request.prompt_ids for request in requests], [image.token_ids for image in sampled], temperature, scale
    )
    scorer = Scorer(tiny_policy.model, tiny_policy.layout)
    for distribution, ours in {
        "guided": torch.cat([image.guided_logprobs for image in sampled]),
        "conditional": torch.cat([image.conditional_logprobs for image in sampled]),
    }.items():
        with torch.no_grad():
            scores = scorer(ScoreRows(image=rows), distribution).image
        torch.testing.assert_close(ours, scores.logprobs, atol=1e-5, rtol=0)


def test_same_prompt_and_seed_gives_the_same_picture_in_any_batch(tiny_policy: Policy) -> None:
    requests = _requests(tiny_policy, 24)
    alone = [ImageSampler(tiny_policy, 1, 2.0, 1.0).sample([request])[0] for request in requests]
    for batch_size in (1, 4, 7, 24, 32):
        together = ImageSampler(tiny_policy, batch_size, 2.0, 1.0).sample(requests)
        assert all(map(_equal, alone, together)), f"batch of {batch_size}"
        for one, other in zip(alone, together, strict=True):
            _close(one, other, 1e-5)
    backwards = ImageSampler(tiny_policy, 24, 2.0, 1.0).sample(requests[::-1])
    assert all(map(_equal, alone, backwards[::-1]))


def test_pictures_that_join_late_are_the_same(tiny_policy: Policy) -> None:
    requests = _requests(tiny_policy, 9)
    expected = ImageSampler(tiny_policy, 9, 2.0, 1.0).sample(requests)
    sampler, done = ImageSampler(tiny_policy, 5, 2.0, 1.0), {}
    waiting = list(enumerate(requests))
    for _ in range(100):
        if waiting and sampler.free:
            sampler.admit([waiting.pop(0)])
        done.update(sampler.step())
    assert sorted(done) == list(range(9))
    assert all(_equal(done[key], image) for key, image in enumerate(expected))


def test_cancelled_pictures_free_their_places(tiny_policy: Policy) -> None:
    requests = _requests(tiny_policy, 4)
    expected = ImageSampler(tiny_policy, 4, 2.0, 1.0).sample(requests)
    sampler = ImageSampler(tiny_policy, 4, 2.0, 1.0)
    sampler.admit(list(enumerate(requests)))
    sampler.step()
    sampler.cancel({0, 2, 77})
    assert sampler.free == 2
    sampler.admit([(10, requests[0])])
    done: dict[int, SampledImage] = {}
    while len(done) < 3:
        done.update(sampler.step())
    assert sorted(done) == [1, 3, 10]
    assert _equal(done[1], expected[1]) and _equal(done[10], expected[0])


def test_seeds_draw_from_the_guided_distribution(tiny_policy: Policy) -> None:
    """Chi-square of first tokens over seeds, against the exact guided distribution."""
    count = 4000
    prompt = _requests(tiny_policy, 1)[0].prompt_ids
    sampled = ImageSampler(tiny_policy, 256, 2.0, 1.0).sample([SampleRequest(prompt, seed) for seed in range(count)])
    first = torch.tensor([int(image.token_ids[0]) for image in sampled])
    observed = torch.bincount(first, minlength=tiny_policy.layout.image_vocab).double()
    vocab = torch.arange(tiny_policy.layout.image_vocab)
    completions = [torch.full((tiny_policy.layout.image_tokens,), int(token)) for token in vocab]
    rows = SegmentRows([prompt] * len(vocab), completions, 1.0, 2.0)
    with torch.no_grad():
        scores = Scorer(tiny_policy.model, tiny_policy.layout)(ScoreRows(image=rows), "guided").image
    expected = scores.logprobs.view(len(vocab), -1)[:, 0].double().exp() * count
    torch.testing.assert_close(expected.sum(), torch.tensor(float(count), dtype=torch.float64), rtol=1e-5, atol=0)
    common = expected >= 5
    pooled_observed = torch.cat([observed[common], observed[~common].sum().view(1)])
    pooled_expected = torch.cat([expected[common], expected[~common].sum().view(1).clamp(min=1e-9)])
    statistic = ((pooled_observed - pooled_expected) ** 2 / pooled_expected).sum()
    freedom = len(pooled_expected) - 1
    assert freedom >= 3
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5, f"chi-square {statistic:.1f} at {freedom} degrees"


def test_weights_are_read_live(tiny_policy: Policy) -> None:
    torch.manual_seed(1)
    model = tiny_janus(
        tiny_policy.tokenizer, hidden=32, layers=1, heads=2, image_vocab=32, image_size=16, vq_multipliers=(1, 1, 1)
    )
    policy = make_policy(model, tiny_policy.tokenizer, PolicyConfig(checkpoint=""))
    requests = _requests(policy, 2)
    sampler = ImageSampler(policy, 2, 2.0, 1.0)
    before = sampler.sample(requests)
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            parameter.mul_(3)
    after, fresh = sampler.sample(requests), ImageSampler(policy, 2, 2.0, 1.0).sample(requests)
    _close(after[0], fresh[0], 0)
    assert not torch.equal(before[0].guided_logprobs, after[0].guided_logprobs)


def test_half_precision_runs(tiny_policy: Policy) -> None:
    torch.manual_seed(2)
    model = tiny_janus(
        tiny_policy.tokenizer, hidden=64, heads=4, kv_heads=2, layers=1, image_vocab=32, image_size=16,
        vq_multipliers=(1, 1, 1),
    )  # fmt: skip
    policy = make_policy(model.bfloat16(), tiny_policy.tokenizer, PolicyConfig(checkpoint=""))
    requests = _requests(policy, 4)
    sampled = ImageSampler(policy, 4, 2.0, 1.0).sample(requests)
    rows = SegmentRows([r.prompt_ids for r in requests], [s.token_ids for s in sampled], 1.0, 2.0)
    with torch.no_grad():
        scores = Scorer(policy.model, policy.layout)(ScoreRows(image=rows), "guided").image
    ours = torch.cat([image.guided_logprobs for image in sampled])
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, scores.logprobs.float(), atol=0.05, rtol=0)


def test_prompts_that_cannot_be_drawn_for_are_refused(tiny_policy: Policy) -> None:
    sampler = ImageSampler(tiny_policy, 2, 2.0, 1.0)
    boi = tiny_policy.layout.boi
    with pytest.raises(PromptError, match=r"begin-of-image"):
        sampler.sample([SampleRequest(torch.tensor([0, 9, 10]), 0)])
    with pytest.raises(PromptError, match=r"113 tokens .* 16 image tokens .* 128 positions"):
        sampler.sample([SampleRequest(torch.tensor([9] * 112 + [boi]), 0)])
    longest = SampleRequest(torch.tensor([9] * 111 + [boi]), 0)
    assert len(sampler.sample([longest])[0].token_ids) == tiny_policy.layout.image_tokens


def test_a_policy_that_was_sampled_can_still_be_trained(tiny_policy: Policy) -> None:
    """Fused layers share memory with the parameters, which must not become inference tensors by it."""
    policy = make_policy(copy.deepcopy(tiny_policy.model), tiny_policy.tokenizer, PolicyConfig(checkpoint=""))
    ImageSampler(policy, 2, 2.0, 1.0).sample(_requests(policy, 1))
    layer = policy.model.model.language_model.layers[0].self_attn
    for projection in (layer.q_proj, layer.k_proj, layer.v_proj):
        assert not projection.weight.is_inference()


def test_weights_that_got_other_memory_are_taken_up(tiny_policy: Policy) -> None:
    """As an engine does that moves parameters into a flat buffer of its own."""
    policy = make_policy(copy.deepcopy(tiny_policy.model), tiny_policy.tokenizer, PolicyConfig(checkpoint=""))
    request = _requests(policy, 1)[0]
    sampler, other = ImageSampler(policy, 1, 2.0, 1.0), ImageSampler(policy, 2, 2.0, 1.0)
    before = sampler.sample([request])[0]
    with torch.no_grad():
        for parameter in policy.model.model.language_model.parameters():
            parameter.data = parameter.data * 1.5
    after = sampler.sample([request])[0]
    fresh = ImageSampler(policy, 1, 2.0, 1.0).sample([request])[0]
    assert not torch.equal(before.guided_logprobs, after.guided_logprobs)
    assert torch.equal(after.guided_logprobs, fresh.guided_logprobs)
    with torch.no_grad():
        policy.model.model.language_model.layers[0].self_attn.k_proj.weight.mul_(1.5)
    for one in (sampler, other):
        fresh = ImageSampler(policy, 1, 2.0, 1.0).sample([request])[0]
        _close(one.sample([request])[0], fresh, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_of_one_position_equals_torchs(dtype: torch.dtype) -> None:
    """Also to a bfloat16 cache without compiling, where torch has given up on compiling once more."""
    torch.manual_seed(0)
    query, keys, values = (torch.randn(3, 2, n, 8, dtype=dtype) for n in (4, 6, 6))
    mask = torch.zeros(3, 1, 1, 5, dtype=dtype).index_fill_(3, torch.tensor([4]), float("-inf"))
    k, v = keys[:, :, :5], values[:, :, :5]
    expected = torch.nn.functional.scaled_dot_product_attention(query, k, v, attn_mask=mask, scale=0.3)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(_attend(query, k, v, mask, 0.3), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.skipif(not (torch.cuda.is_available() and HAS_TRITON), reason="a Triton kernel needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_to_live_slots_equals_torchs(dtype: torch.dtype) -> None:
    """Whatever stands behind them, in every row's own length, and with heads that share keys."""
    from actors.decode_attention import attend_live

    torch.manual_seed(0)
    query = torch.randn(5, 4, 32, dtype=dtype, device="cuda")
    keys, values = (torch.randn(6, 2, 200, 32, dtype=dtype, device="cuda") for _ in range(2))
    positions = torch.tensor([0, 63, 64, 150, 199], device="cuda")
    keys[0, :, 1:], values[0, :, 1:] = float("nan"), float("nan")
    found = attend_live(query, keys, values, positions, 0.3)
    for row, last in enumerate(positions.tolist()):
        k, v = (cache[row, :, : last + 1].repeat_interleave(2, dim=0) for cache in (keys, values))
        expected = (query[row].float().unsqueeze(1) @ k.float().transpose(1, 2) * 0.3).softmax(-1) @ v.float()
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(found[row].float(), expected.squeeze(1), atol=tolerance, rtol=tolerance)
    assert torch.equal(found, attend_live(query, keys, values, positions, 0.3))


def test_a_step_waits_for_nothing_of_the_device(tiny_policy: Policy) -> None:
    """As a CUDA graph demands: on the meta device, whose tensors hold nothing, whoever asks for a value fails."""
    model = copy.deepcopy(tiny_policy.model).to("meta")
    sampler = ImageSampler(make_policy(model, tiny_policy.tokenizer, PolicyConfig(checkpoint="")), 4, 2.0, 1.0)
    with torch.inference_mode():
        sampler._draw(4)
        sampler._advance(4, 16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_graphs_draw_the_same_pictures(tiny_policy: Policy) -> None:
    """Captured, replayed, and captured anew after weights have moved."""
    model = copy.deepcopy(tiny_policy.model).to("cuda")
    policy = make_policy(model, tiny_policy.tokenizer, PolicyConfig(checkpoint=""))
    requests = _requests(policy, 12)
    plain, graphed = (ImageSampler(policy, 4, 2.0, 1.0, graphed=graphed) for graphed in (False, True))
    for _ in range(2):
        for one, other in zip(plain.sample(requests), graphed.sample(requests), strict=True):
            assert _equal(one, other)
        with torch.no_grad():
            for parameter in model.model.language_model.parameters():
                parameter.data = parameter.data * 1.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU has no allocator that keeps freed memory")
def test_what_a_grown_cache_has_left_goes_back_to_the_card(tiny_policy: Policy) -> None:
    llama = copy.deepcopy(tiny_policy.model).to("cuda").model.language_model
    with torch.inference_mode():
        cache = CachedLlama(llama, 256, 800, torch.float32)
        before = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        cache.grow(1200)
    left = torch.cuda.memory_reserved() - torch.cuda.memory_allocated() - before
    assert left < 2**23, f"{left / 2**20:.0f} MiB kept of caches of 100 MiB"


@pytest.mark.slow
def test_compiled_sampler_is_the_same_sampler(tiny_policy: Policy) -> None:
    """Promises 1 and 2 of the compiled decode step: the learner's log-probs, and one picture in any batch."""
    requests = _requests(tiny_policy, 12)
    sampler = ImageSampler(tiny_policy, 12, 2.0, 1.0, compiled=True)
    together = sampler.sample(requests)
    eager = ImageSampler(tiny_policy, 12, 2.0, 1.0).sample(requests)
    assert all(map(_equal, together, eager))
    alone = [sampler.sample([request])[0] for request in requests]
    backwards = sampler.sample(requests[::-1])
    assert all(map(_equal, together, alone)) and all(map(_equal, together, backwards[::-1]))
    rows = SegmentRows([r.prompt_ids for r in requests], [image.token_ids for image in together], 1.0, 2.0)
    with torch.no_grad():
        scores = Scorer(tiny_policy.model, tiny_policy.layout)(ScoreRows(image=rows), "guided").image
    ours = torch.cat([image.guided_logprobs for image in together])
    torch.testing.assert_close(ours, scores.logprobs, atol=1e-5, rtol=0)
