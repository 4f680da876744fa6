"""The semantic actor with a real vLLM engine in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_cases import random_adapter
from transformers import JanusForConditionalGeneration

from actors.config import SemanticConfig
from actors.errors import DeadlineError, EngineError, PromptError, WeightsError
from actors.requests import SemanticOutput, SemanticRequest
from policy.config import PolicyConfig
from policy.janus import Policy, trained_parameters
from policy.lora import SCALE, BaseWeights, adapter_name, received_adapter
from policy.scoring import Scorer, ScoreRows, SegmentRows
from transport.errors import WeightsHalfWritten, WeightTransferError
from transport.weights.broadcast import BroadcastHost, BroadcastMember
from transport.weights.channel import WeightManifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONFIG = SemanticConfig(max_tokens=12, max_num_seqs=16, kv_cache_gb=0.05, deadline_s=60, temperature=0.8)
WORDS = "red green blue circle square left right above two three".split()


def run(work: Any) -> Any:
    return asyncio.run(work)


def requests(count: int) -> list[SemanticRequest]:
    """Prompts of one to ten words, seeds 100 and up."""
    return [SemanticRequest(" ".join(WORDS[: 1 + i * 7 % 10]), 100 + i) for i in range(count)]


def tokens(outputs: list[SemanticOutput]) -> list[list[int]]:
    return [output.segment.token_ids.tolist() for output in outputs]


async def load(actor: Any, model: JanusForConditionalGeneration, version: int) -> int:
    """Give `actor` the language model of `model`, without a weight channel."""
    trained = trained_parameters(model, "language_model")
    loaded: int = await actor._load(version, [(name, value.detach()) for name, value in trained.items()])
    return loaded


async def broadcast_to(actor: Any, version: int, tensors: dict[str, torch.Tensor]) -> int:
    """Send tensors from this thread to the workers of `actor`, all in one group."""
    workers = actor._config.tensor_parallel
    names = ["learner-0", *(f"semantic-0 worker {number}" for number in range(workers))]
    host = BroadcastHost("127.0.0.1")
    seats = host.seats(names, "gloo")
    manifest = WeightManifest.of(version, [(n, t.dtype, tuple(t.shape)) for n, t in tensors.items()], 1 << 16)
    receiving = asyncio.create_task(actor.receive_weights(manifest, seats[1], 60.0))
    sender = BroadcastMember(seats[0])

    def send() -> None:
        sender.meet(version, 60.0)
        sender.send(manifest, tensors.items(), 60.0)

    sending = asyncio.create_task(asyncio.to_thread(send))
    try:
        return await receiving
    finally:
        if receiving.exception():
            host.stop(version, "a receiver refused")
        await asyncio.wait([sending])
        sender.leave()


def worst(policy: Policy, model: JanusForConditionalGeneration, outputs: list[SemanticOutput]) -> float:
    """Largest |difference| between the actor's log-probs and the learner's under `model`."""
    segments = [output.segment for output in outputs]
    rows = SegmentRows([s.prompt_ids for s in segments], [s.token_ids for s in segments], segments[0].temperature)
    with torch.no_grad():
        scores = Scorer(model, policy.layout)(ScoreRows(text=rows)).text
    assert scores
    return float((torch.cat([s.logprobs for s in segments]) - scores.logprobs).abs().max())


@pytest.fixture(scope="module")
def actor(tiny_config: PolicyConfig) -> Iterator[Any]:
    from actors.semantic_actor import SemanticActor

    actor = SemanticActor(tiny_config, CONFIG)
    with pytest.raises(WeightsError, match=r"no weights yet"):
        run(actor.generate(requests(1)))
    assert actor.metrics()["weight_version"] == -1
    yield actor
    actor.close()


@pytest.fixture
def loaded(actor: Any, tiny_policy: Policy) -> Any:
    """The actor with the tiny policy's weights, as version 1."""
    assert run(load(actor, tiny_policy.model, 1)) == 1
    return actor


def test_logprobs_are_the_learners(loaded: Any, tiny_policy: Policy) -> None:
    outputs = run(loaded.generate(requests(40)))
    assert worst(tiny_policy, tiny_policy.model, outputs) < 1e-5
    reasons = {output.segment.finish_reason for output in outputs}
    assert reasons == {"stop", "length"}
    for request, output in zip(requests(40), outputs, strict=True):
        segment = output.segment
        assert segment.prompt_ids.tolist() == tiny_policy.prompts.semantic_prompt(request.prompt)
        assert (segment.token_ids[-1] == tiny_policy.layout.eos) == (segment.finish_reason == "stop")
        assert len(segment.token_ids) == CONFIG.max_tokens or segment.finish_reason == "stop"
        assert segment.weight_version == 1
        assert segment.logprobs.dtype == torch.float32 and segment.token_ids.dtype == torch.int64
        assert output.cot == tiny_policy.prompts.decode(segment.token_ids)
        assert "<eos>" not in output.cot


def test_a_checkpoint_serves_as_it_lies_on_disk(actor: Any, tiny_policy: Policy) -> None:
    assert run(actor.load_checkpoint()) == actor.metrics()["weight_version"] == 0
    assert worst(tiny_policy, tiny_policy.model, run(actor.generate(requests(8)))) < 1e-5


def test_a_seed_gives_the_same_text_alone_and_together(loaded: Any) -> None:
    together = run(loaded.generate(requests(24)))
    alone = [run(loaded.generate([request]))[0] for request in requests(24)]
    assert tokens(alone) == tokens(together)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one.segment.logprobs, other.segment.logprobs, atol=1e-5, rtol=0)
    reseeded = [SemanticRequest(request.prompt, request.seed + 1) for request in requests(24)]
    assert tokens(run(loaded.generate(reseeded))) != tokens(alone)


def test_groups_that_stream_in_are_decoded_together(loaded: Any) -> None:
    expected = tokens(run(loaded.generate(requests(24))))
    before = loaded.metrics()

    async def stream() -> list[list[SemanticOutput]]:
        groups = [requests(24)[start : start + 8] for start in (0, 8, 16)]
        return await asyncio.gather(*(loaded.generate(group) for group in groups))

    groups = run(stream())
    assert [ids for group in groups for ids in tokens(group)] == expected
    after = loaded.metrics()
    row_steps, steps = (after[name] - before[name] for name in ("row_steps", "steps"))
    assert row_steps / steps > 8, "groups of 8 have to share a batch"
    assert after["running"] == after["queued"] == 0
    assert (
        after["vllm_generation_tokens"] - before["vllm_generation_tokens"] == after["tokens"] - before["tokens"] > 0
    )
    assert after["vllm_running"] == after["vllm_waiting"] == after["vllm_kv_cache_usage"] == 0


def test_a_sync_changes_the_distribution_between_batches(loaded: Any, tiny_policy: Policy) -> None:
    other = deepcopy(tiny_policy.model)
    with torch.no_grad():
        for parameter in other.model.language_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)

    async def sync_between() -> tuple[list[SemanticOutput], int, list[SemanticOutput]]:
        first = asyncio.create_task(loaded.generate(requests(40)))
        await asyncio.sleep(0.01)
        sync = asyncio.create_task(load(loaded, other, 2))
        await asyncio.sleep(0)
        second = asyncio.create_task(loaded.generate(requests(40)))
        return await first, await sync, await second

    before, version, after = run(sync_between())
    assert version == loaded.metrics()["weight_version"] == 2
    assert {o.segment.weight_version for o in before} == {1} and {o.segment.weight_version for o in after} == {2}
    assert worst(tiny_policy, tiny_policy.model, before) < 1e-5
    assert worst(tiny_policy, other, after) < 1e-5
    assert worst(tiny_policy, tiny_policy.model, after) > 1e-3


def test_an_incomplete_update_leaves_the_old_weights(loaded: Any, tiny_policy: Policy) -> None:
    expected = tokens(run(loaded.generate(requests(4))))
    with pytest.raises(WeightTransferError, match=r"not published"):
        run(loaded._load(3, [("lm_head.weight", torch.zeros_like(tiny_policy.model.lm_head.weight))]))
    assert loaded.metrics()["weight_version"] == 1
    assert tokens(run(loaded.generate(requests(4)))) == expected


def test_an_adapter_is_merged_into_the_checkpoint_anew_at_every_version(loaded: Any, tiny_policy: Policy) -> None:
    layer = "model.language_model.layers.1."
    tensors = random_adapter(tiny_policy, [f"{layer}self_attn.k_proj.weight", f"{layer}mlp.up_proj.weight"])
    merged = deepcopy(tiny_policy.model)
    state = merged.state_dict()
    adapter = received_adapter(list(tensors.items()))
    assert adapter is not None
    for name, tensor in adapter.merged(tiny_policy.model.state_dict().__getitem__):
        state[name].copy_(tensor)
    for version in (2, 3):
        assert run(loaded._load(version, list(tensors.items()))) == version
        outputs = run(loaded.generate(requests(8)))
        assert worst(tiny_policy, merged, outputs) < 1e-5
        assert worst(tiny_policy, tiny_policy.model, outputs) > 1e-3
    nothing = [(name, tensor if name == SCALE else torch.zeros_like(tensor)) for name, tensor in tensors.items()]
    run(loaded._load(4, nothing))
    assert worst(tiny_policy, tiny_policy.model, run(loaded.generate(requests(8)))) < 1e-5


def test_an_adapter_that_cannot_be_merged_leaves_the_old_weights(loaded: Any, tiny_policy: Policy) -> None:
    expected = tokens(run(loaded.generate(requests(4))))
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    good = random_adapter(tiny_policy, [name])
    unknown = {key.replace("layers.1", "layers.7"): tensor for key, tensor in good.items()}
    for tensors, told in [
        (unknown, "no weight 'model.language_model.layers.7.mlp.up_proj.weight' to adapt"),
        ({key: tensor for key, tensor in good.items() if key != SCALE}, "weights 3: an adapter came without"),
        ({**good, adapter_name("A", name): torch.zeros(2, 5)}, r"up_proj.weight' is \[160, 64\], and the adapter's"),
    ]:
        with pytest.raises(WeightTransferError, match=told):
            run(loaded._load(3, list(tensors.items())))
    assert loaded.metrics()["weight_version"] == 1
    assert tokens(run(loaded.generate(requests(4)))) == expected


def test_prompts_that_are_too_long_are_refused(loaded: Any) -> None:
    with pytest.raises(PromptError, match=r"at most 116"):
        run(loaded.generate([SemanticRequest("red " * 200, 0)]))


def test_a_missed_deadline_names_the_stage_and_frees_the_engine(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded, "_config", CONFIG.model_copy(update={"deadline_s": 0.005}))
    with pytest.raises(DeadlineError, match=r"semantic: \d+ of 64 requests done after .* \(deadline 0.005 s\)"):
        run(loaded.generate(requests(64)))
    monkeypatch.setattr(loaded, "_config", CONFIG)
    assert len(run(loaded.generate(requests(2)))) == 2
    assert loaded.metrics()["running"] == 0


def test_stdout_stays_clean(loaded: Any, capfd: pytest.CaptureFixture[str]) -> None:
    run(loaded.generate(requests(2)))
    assert capfd.readouterr().out == ""


def test_impossible_lengths_are_refused_before_the_engine_starts(tiny_config: PolicyConfig, tmp_path: Path) -> None:
    from actors.semantic_actor import SemanticActor

    with pytest.raises(ValueError, match=r"semantic\.max_tokens: 128 leaves no room"):
        SemanticActor(tiny_config, SemanticConfig(max_tokens=128))


def test_tensor_parallel_with_top_k(tiny_config: PolicyConfig, tiny_policy: Policy) -> None:
    """Two workers hold a shard each; top-k draws among the k likeliest, log-probs are of the full softmax."""
    from actors.semantic_actor import SemanticActor

    sharded = SemanticActor(
        tiny_config, CONFIG.model_copy(update={"tensor_parallel": 2, "top_k": 3, "temperature": 1.0})
    )
    try:
        for version in (1, 2):
            assert run(load(sharded, tiny_policy.model, version)) == version
            outputs = run(sharded.generate(requests(12)))
            assert worst(tiny_policy, tiny_policy.model, outputs) < 1e-5
        model = deepcopy(tiny_policy.model)
        with torch.no_grad():
            for parameter in model.model.language_model.parameters():
                parameter.mul_(1.1)
        assert run(broadcast_to(sharded, 3, trained_parameters(model, "language_model"))) == 3
        assert worst(tiny_policy, model, run(sharded.generate(requests(12)))) < 1e-5
        with pytest.raises(WeightTransferError, match=r"weights 4: 'model\.norm\.weight' is \[3\]"):
            wrong = trained_parameters(model, "language_model") | {"model.language_model.norm.weight": torch.zeros(3)}
            run(broadcast_to(sharded, 4, wrong))
        adapter = random_adapter(tiny_policy, ["model.language_model.layers.1.self_attn.k_proj.weight"])
        assert run(broadcast_to(sharded, 5, adapter)) == 5
        merged = deepcopy(tiny_policy.model)
        for name, tensor in received_adapter(list(adapter.items())).merged(BaseWeights(tiny_config).tensor):
            merged.state_dict()[name].copy_(tensor)
        assert worst(tiny_policy, merged, run(sharded.generate(requests(12)))) < 1e-5
        assert run(load(sharded, tiny_policy.model, 6)) == 6
        outputs = run(sharded.generate(requests(12)))
        for output in outputs:
            ids = torch.cat([output.segment.prompt_ids, output.segment.token_ids])
            model = tiny_policy.model
            with torch.no_grad():
                states = model.model.language_model(input_ids=ids[None, :-1]).last_hidden_state[0]
            likeliest = model.lm_head(states[-len(output.segment.token_ids) :]).topk(3).indices
            assert (likeliest == output.segment.token_ids[:, None]).any(-1).all()

        long = [SemanticRequest(" ".join(WORDS * 10), 200 + i) for i in range(96)]
        together = run(sharded.generate(long))
        assert sum(len(output.segment.prompt_ids) for output in together) > 8192, "more than one step takes"
        assert tokens(together[-1:]) == tokens(run(sharded.generate(long[-1:])))
    finally:
        sharded.close()


def test_an_update_that_breaks_off_leaves_no_weights(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not a real one: vLLM shares rotary tables between the engines of a process, and would keep them spoilt.
    def broken(*_: Any, **__: Any) -> None:
        raise WeightsHalfWritten("half written")

    monkeypatch.setattr("transport.weights.vllm_engine.apply_to_vllm", broken)
    with pytest.raises(EngineError, match="half written"):
        run(loaded._load(3, []))
    with pytest.raises(WeightsError, match="no weights"):
        run(loaded.generate(requests(1)))
