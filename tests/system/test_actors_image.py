"""The image actor and the batch loop, in this process, on the real sampler and VQ decoder."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from actors.config import ImageConfig
from actors.errors import DeadlineError, EngineError, PromptError, WeightsError
from actors.image_actor import ImageActor
from actors.requests import ImageOutput, ImageRequest
from policy.config import Pixels, PolicyConfig
from policy.janus import Policy, load_policy
from policy.pictures import decode_pictures
from policy.scoring import Scorer, ScoreRows, SegmentRows

CONFIG = ImageConfig(batch_size=16, guidance_scale=2.0, decode_batch=3, deadline_s=60)


def run(work: Any) -> Any:
    return asyncio.run(work)


def requests(count: int) -> list[ImageRequest]:
    """Every third has no plan; seeds are 0 and up."""
    plans = ["", "a red circle left", "two blue square above a green circle , a red circle"]
    return [ImageRequest("a red circle and a blue square .", plans[i % 3], i) for i in range(count)]


def tokens(outputs: list[ImageOutput]) -> list[list[int]]:
    return [output.segment.token_ids.tolist() for output in outputs]


@pytest.fixture
def actor(tiny_config: PolicyConfig) -> Iterator[ImageActor]:
    actor = ImageActor(tiny_config, CONFIG)
    yield actor
    actor.close()


def test_outputs_hold_all_the_learner_needs(actor: ImageActor, tiny_policy: Policy) -> None:
    outputs = run(actor.sample(requests(20)))
    segments = [output.segment for output in outputs]
    rows = SegmentRows([s.prompt_ids for s in segments], [s.token_ids for s in segments], 1.0, 2.0)
    with torch.no_grad():
        scores = Scorer(tiny_policy.model, tiny_policy.layout)(ScoreRows(image=rows), "guided").image
    assert scores
    torch.testing.assert_close(torch.cat([s.guided_logprobs for s in segments]), scores.logprobs, atol=1e-5, rtol=0)
    pictures = decode_pictures(tiny_policy.model, torch.stack([s.token_ids for s in segments]))
    for request, output, picture in zip(requests(20), outputs, pictures, strict=True):
        segment = output.segment
        assert segment.prompt_ids.tolist() == tiny_policy.prompts.image_prompt(request.prompt, request.cot)
        assert (segment.guidance_scale, segment.temperature, segment.weight_version) == (2.0, 1.0, 0)
        assert output.picture.shape == (16, 16, 3) and output.picture.dtype == np.uint8
        assert np.abs(output.picture.astype(int) - picture.astype(int)).max() <= 1


@pytest.mark.parametrize(("pixels", "other"), [("round", "truncate"), ("truncate", "round")])
def test_bytes_are_made_as_the_config_says(
    pixels: Pixels, other: Pixels, tiny_config: PolicyConfig, tiny_policy: Policy
) -> None:
    actor = ImageActor(tiny_config, CONFIG.model_copy(update={"pixels": pixels}))
    outputs = run(actor.sample(requests(8)))
    actor.close()
    tokens = torch.stack([output.segment.token_ids for output in outputs])
    drawn = np.stack([output.picture for output in outputs])
    # a value may lie a rounding away from the next byte, in another batch
    assert (drawn == decode_pictures(tiny_policy.model, tokens, pixels)).mean() > 0.99
    assert (drawn == decode_pictures(tiny_policy.model, tokens, other)).mean() < 0.6


def test_groups_that_stream_in_share_a_batch_and_change_nothing(
    actor: ImageActor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(actor.sample(requests(24)))
    before = actor.metrics()

    begun, go_on, step = threading.Event(), threading.Event(), actor._painter._sampler.step

    def waiting_step() -> Any:
        begun.set()
        assert go_on.wait(60)
        return step()

    async def stream() -> list[list[ImageOutput]]:
        monkeypatch.setattr(actor._painter._sampler, "step", waiting_step)
        groups = [asyncio.create_task(actor.sample(requests(24)[:8]))]
        assert await asyncio.to_thread(begun.wait, 60)  # others come while the first is drawn
        groups += [asyncio.create_task(actor.sample(requests(24)[start : start + 8])) for start in (8, 16)]
        await asyncio.sleep(0.01)
        go_on.set()
        return await asyncio.gather(*groups)

    outputs = [output for group in run(stream()) for output in group]
    assert tokens(outputs) == tokens(expected)
    assert all(np.array_equal(one.picture, other.picture) for one, other in zip(outputs, expected, strict=True))
    after = actor.metrics()
    assert after["finished"] == 48 and after["running"] == after["queued"] == 0
    assert after["steps"] - before["steps"] < 3 * 16, "groups have to overlap"
    assert after["tokens"] - before["tokens"] == 24 * 16


def test_an_update_waits_for_the_running_and_delays_the_next(actor: ImageActor, tiny_config: PolicyConfig) -> None:
    other = load_policy(tiny_config)
    with torch.no_grad():
        for parameter in other.model.model.language_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    weights = [(name, value) for name, value in other.model.state_dict().items() if "language_model" in name]
    expected = run(actor.sample(requests(24)))

    async def update_between() -> tuple[list[ImageOutput], list[ImageOutput]]:
        first = asyncio.create_task(actor.sample(requests(24)))
        await asyncio.sleep(0.01)
        update = asyncio.create_task(actor._loop.exclusive(lambda: actor._painter.load(7, weights), 60))
        await asyncio.sleep(0)
        second = asyncio.create_task(actor.sample(requests(24)))
        await update
        return await first, await second

    first, second = run(update_between())
    assert tokens(first) == tokens(expected) and tokens(second) != tokens(expected)
    assert {output.segment.weight_version for output in first} == {0}
    assert {output.segment.weight_version for output in second} == {7}
    assert actor.metrics()["weight_version"] == 7
    segments = [output.segment for output in second]
    rows = SegmentRows([s.prompt_ids for s in segments], [s.token_ids for s in segments], 1.0, 2.0)
    with torch.no_grad():
        scores = Scorer(other.model, other.layout)(ScoreRows(image=rows), "conditional").image
    assert scores
    ours = torch.cat([s.conditional_logprobs for s in segments])
    torch.testing.assert_close(ours, scores.logprobs, atol=1e-5, rtol=0)


def test_weights_that_do_not_fit_change_nothing(actor: ImageActor) -> None:
    expected = tokens(run(actor.sample(requests(2))))
    name = "lm_head.weight"
    good = torch.zeros_like(actor._painter._policy.model.model.language_model.norm.weight)
    for tensors, message in {
        (("model.language_model.norm.weight", good), ("model.nonsense", good)): "no tensor 'model.nonsense'",
        (("model.language_model.norm.weight", good), (name, good)): r"'lm_head.weight' has shape \[64\]",
        (): "no tensor came",
    }.items():
        with pytest.raises(WeightsError, match=message):
            run(actor._loop.exclusive(partial(actor._painter.load, 3, tensors), 60))
    assert actor.metrics()["weight_version"] == 0
    assert tokens(run(actor.sample(requests(2)))) == expected


def test_a_bad_prompt_stops_its_call_only(actor: ImageActor) -> None:
    async def both() -> Any:
        bad = [*requests(2), ImageRequest("red " * 200, "", 0)]
        return await asyncio.gather(actor.sample(requests(3)), actor.sample(bad), return_exceptions=True)

    good, bad = run(both())
    assert len(good) == 3 and isinstance(bad, PromptError)


def test_a_missed_deadline_frees_the_batch(actor: ImageActor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor, "_config", CONFIG.model_copy(update={"deadline_s": 0.01}))
    with pytest.raises(DeadlineError, match=r"image: \d+ of 200 requests done after .* \(deadline 0.01 s\)"):
        run(actor.sample(requests(200)))
    monkeypatch.setattr(actor, "_config", CONFIG)
    assert len(run(actor.sample(requests(3)))) == 3
    metrics = actor.metrics()
    assert metrics["running"] == metrics["queued"] == 0 and metrics["finished"] < 100


def test_a_failed_engine_fails_what_waits_and_what_comes(actor: ImageActor, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(actor._painter._sampler, "step", broken)
    with pytest.raises(EngineError, match=r"image: .* out of memory"):
        run(actor.sample(requests(2)))
    with pytest.raises(EngineError, match=r"image: .* out of memory"):
        run(actor.sample(requests(2)))


def test_close_fails_what_is_queued(actor: ImageActor) -> None:
    async def close_early() -> None:
        task = asyncio.create_task(actor.sample(requests(400)))
        await asyncio.sleep(0.02)
        await asyncio.to_thread(actor.close)
        await task

    with pytest.raises(EngineError, match=r"image"):
        run(close_early())
