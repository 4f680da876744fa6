"""Both actors as real Ray actors, with weights by broadcast and through the real object store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import ray
import torch
from learner_cases import random_adapter
from ray.exceptions import RayTaskError

from actors.config import ImageConfig, SemanticConfig
from actors.image_actor import ImageActor
from actors.requests import ImageRequest, SemanticRequest
from actors.semantic_actor import SemanticActor
from policy.config import PolicyConfig
from policy.janus import load_policy, trained_parameters
from policy.lora import BaseWeights, received_adapter
from policy.scoring import Scorer, ScoreRows, SegmentRows
from transport.weights.broadcast import BroadcastHost, BroadcastMember
from transport.weights.channel import WeightManifest
from transport.weights.object_store import ObjectStorePublisher

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

WAIT_S = 120


@dataclass
class Pools:
    """An actor of each kind, and the newest version that both have."""

    semantic: Any
    image: Any
    version: int = 0


@pytest.fixture(scope="module")
def pools(shared_ray: None, tiny_config: PolicyConfig) -> Iterator[Pools]:
    semantic = ray.remote(SemanticActor).remote(
        tiny_config, SemanticConfig(max_tokens=8, max_num_seqs=8, kv_cache_gb=0.05)
    )
    image = ray.remote(ImageActor).remote(tiny_config, ImageConfig(batch_size=8, guidance_scale=2.0))
    yield Pools(semantic, image)
    for actor in (semantic, image):
        ray.kill(actor)


@pytest.mark.parametrize("transport", ["broadcast", "object_store"])
def test_a_rollout_through_both_pools_before_and_after_a_sync(
    pools: Pools, tiny_config: PolicyConfig, transport: str
) -> None:
    semantic, image = pools.semantic, pools.image
    policy = load_policy(tiny_config)
    publisher = ObjectStorePublisher(bucket_mb=1)
    host = BroadcastHost("127.0.0.1")
    seats = host.seats(["learner-0", "semantic-0", "image-0"], "gloo")
    sender = BroadcastMember(seats[0])
    plain, adapted, other = range(pools.version + 1, pools.version + 4)
    for version in (plain, adapted, other):
        tensors: dict[str, torch.Tensor] = {**trained_parameters(policy.model, "language_model")}
        if version == adapted:  # an adapter; as in a run that trains one, the other weights are the checkpoint's
            tensors = random_adapter(policy, [name for name in tensors if name.endswith("_proj.weight")])
            adapter = received_adapter(list(tensors.items()))
            assert adapter
            for name, tensor in adapter.merged(BaseWeights(tiny_config).tensor):
                policy.model.state_dict()[name].copy_(tensor)
        if version == other:
            with torch.no_grad():
                for parameter in tensors.values():
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        if transport == "object_store":
            published = publisher.publish(version, tensors.items())
            applied = [actor.apply_weights.remote(published) for actor in (semantic, image)]
        else:
            manifest = WeightManifest.of(version, [(n, t.dtype, tuple(t.shape)) for n, t in tensors.items()], 1 << 16)
            applied = [
                actor.receive_weights.remote(manifest, seat, WAIT_S)
                for actor, seat in zip((semantic, image), seats[1:], strict=True)
            ]
            sender.meet(version, WAIT_S)
            sender.send(manifest, tensors.items(), WAIT_S)
        assert ray.get(applied, timeout=WAIT_S) == [version, version]
        # several groups at once, as the training loop sends them
        prompts = [[SemanticRequest("a red circle", 10 * g + i) for i in range(4)] for g in range(3)]
        cots = ray.get([semantic.generate.remote(group) for group in prompts], timeout=WAIT_S)
        drawn = ray.get(
            [
                image.sample.remote([ImageRequest("a red circle", cot.cot, seed) for seed, cot in enumerate(group)])
                for group in cots
            ],
            timeout=WAIT_S,
        )
        text = [cot.segment for group in cots for cot in group]
        pictures = [output.segment for group in drawn for output in group]
        assert {segment.weight_version for segment in [*text, *pictures]} == {version}
        rows = ScoreRows(
            text=SegmentRows([s.prompt_ids for s in text], [s.token_ids for s in text]),
            image=SegmentRows([s.prompt_ids for s in pictures], [s.token_ids for s in pictures], 1.0, 2.0),
        )
        with torch.no_grad():
            scores = Scorer(policy.model, policy.layout)(rows, "guided")
        assert scores.text and scores.image
        for ours, theirs in [
            ([s.logprobs for s in text], scores.text.logprobs),
            ([s.guided_logprobs for s in pictures], scores.image.logprobs),
        ]:
            torch.testing.assert_close(torch.cat(ours), theirs, atol=1e-5, rtol=0)
    told = ray.get([semantic.metrics.remote(), image.metrics.remote()], timeout=WAIT_S)
    assert [metrics["weight_version"] for metrics in told] == [other, other]
    if transport == "broadcast":
        wrong = WeightManifest.of(other + 1, [("model.unknown", torch.float32, (2, 2))], 1 << 16)
        for actor, seat, told in ((semantic, seats[1], "were not published"), (image, seats[2], "no tensor")):
            with pytest.raises(RayTaskError, match=rf"weights {other + 1}: .*{told}"):  # before it enters
                ray.get(actor.receive_weights.remote(wrong, seat, WAIT_S), timeout=WAIT_S)
        told = ray.get([semantic.metrics.remote(), image.metrics.remote()], timeout=WAIT_S)
        assert [metrics["weight_version"] for metrics in told] == [other, other]
    pools.version = other
