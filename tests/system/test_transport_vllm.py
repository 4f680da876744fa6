"""Published weights in a real vLLM engine: the same distribution as the model that published them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import ray
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from transport.errors import WeightsHalfWritten, WeightTransferError
from transport.weights.broadcast import BroadcastHost, BroadcastMember
from transport.weights.channel import Published, WeightManifest
from transport.weights.object_store import ObjectStorePublisher

if TYPE_CHECKING:
    from vllm import LLM

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONFIG = LlamaConfig(
    vocab_size=131,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=128,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
)
PROMPT = [1, *range(5, 40)]


@pytest.fixture(scope="module")
def publisher(shared_ray: None) -> ObjectStorePublisher:
    return ObjectStorePublisher(bucket_mb=1)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", TORCHDYNAMO_DISABLE="1")
    from vllm import LLM
    from vllm.config import WeightTransferConfig

    from transport.weights.vllm_engine import WORKER, register

    folder: Path = tmp_path_factory.mktemp("llama")
    config = CONFIG.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    LlamaConfig(**config).save_pretrained(folder)
    assert register() == register()
    yield LLM(
        model=str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=8,
        logprobs_mode="processed_logprobs",
        enable_prefix_caching=True,
        worker_extension_cls=WORKER,
        weight_transfer_config=WeightTransferConfig(backend=register()),
    )


def janus_state(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """The model's tensors under the names that they have in Janus, and one that vLLM has no use for."""
    state = {
        name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name: tensor
        for name, tensor in model.state_dict().items()
    }
    return state | {"model.generation_head.proj_out.weight": torch.zeros(3, 3)}


def policy(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(CONFIG).eval().requires_grad_(False)


def apply(llm: LLM, published: Published) -> int:
    from transport.weights.vllm_engine import apply_to_vllm

    return apply_to_vllm(llm, published, deadline_s=20.0)


def worst_difference(llm: LLM, model: LlamaForCausalLM) -> float:
    """Largest |difference| of log-probs between vLLM and transformers, over a prompt and its sample."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=1.0, max_tokens=16, logprobs=0, prompt_logprobs=0, seed=3, ignore_eos=True)
    output: Any = llm.generate([{"prompt_token_ids": PROMPT}], sampling, use_tqdm=False)[0]
    tokens = [*PROMPT, *output.outputs[0].token_ids]
    rows = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
    ours = torch.tensor([row[token].logprob for row, token in zip(rows, tokens[1:], strict=True)])
    logits = model(torch.tensor([tokens])).logits[0, :-1]
    theirs = logits.log_softmax(-1).gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0]
    return float((ours - theirs).abs().max())


def test_weights_arrive_and_replace_those_before(llm: LLM, publisher: ObjectStorePublisher) -> None:
    first, second = policy(1), policy(2)
    assert apply(llm, publisher.publish(1, janus_state(first).items())) == 1
    assert worst_difference(llm, first) < 1e-5
    assert apply(llm, publisher.publish(2, janus_state(second).items())) == 2
    assert worst_difference(llm, second) < 1e-5
    assert worst_difference(llm, first) > 1e-3
    assert llm.get_weight_version() == "2"


def test_an_incomplete_publication_changes_nothing(llm: LLM, publisher: ObjectStorePublisher) -> None:
    model = policy(3)
    apply(llm, publisher.publish(3, janus_state(model).items()))
    tensors = janus_state(policy(4))
    del tensors["model.language_model.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(WeightTransferError, match=r"weights 4: 1 tensors .*layers\.1\.self_attn\.k_proj\.weight"):
        apply(llm, publisher.publish(4, tensors.items()))
    assert worst_difference(llm, model) < 1e-5


def test_a_transfer_that_fails_changes_nothing(llm: LLM, publisher: ObjectStorePublisher) -> None:
    model = policy(5)
    apply(llm, publisher.publish(5, janus_state(model).items()))
    published = publisher.publish(6, janus_state(policy(6)).items())
    handles = (ray.put(np.zeros(published.manifest.bucket_bytes[0], np.uint8)), *published.handles[1:])
    with pytest.raises(WeightTransferError, match="weights 6, bucket 1 of 1: damaged"):
        apply(llm, dataclasses.replace(published, handles=handles))
    assert worst_difference(llm, model) < 1e-5
    assert llm.get_weight_version() == "5"


def test_weights_of_another_shape_are_refused(llm: LLM, publisher: ObjectStorePublisher) -> None:
    model = policy(7)
    apply(llm, publisher.publish(7, janus_state(model).items()))
    tensors = janus_state(policy(8))
    tensors["model.language_model.layers.0.mlp.down_proj.weight"] = torch.zeros(3, 3)
    with pytest.raises(
        WeightTransferError, match=r"weights 8: 'model\.layers\.0\.mlp\.down_proj\.weight' is \[3, 3\]"
    ):
        apply(llm, publisher.publish(8, tensors.items()))
    assert worst_difference(llm, model) < 1e-5


def test_a_broadcast_that_breaks_off_half_way_is_told(llm: LLM) -> None:
    """The last test: it breaks the engine."""
    from transport.weights.vllm_engine import broadcast_to_vllm

    tensors = janus_state(policy(9))
    manifest = WeightManifest.of(9, [(n, t.dtype, tuple(t.shape)) for n, t in tensors.items()], 16 << 10)
    host = BroadcastHost("127.0.0.1")
    seats = host.seats(["learner-0", "semantic-0"], "gloo")
    sender = BroadcastMember(seats[0])

    def send() -> None:
        sender.meet(9, 20.0)
        sender.send(manifest, list(tensors.items())[:-3], 20.0)

    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(send)
        with pytest.raises(WeightsHalfWritten, match=r"weights 9: .*half written.*learner-0 gave up"):
            broadcast_to_vllm(llm, manifest, seats[1], deadline_s=20.0)
        with pytest.raises(WeightTransferError, match="fewer tensors came"):
            sending.result()
