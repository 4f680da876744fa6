"""Checkpoints of both layouts: names against the original's own modules, round trips, bits, memory."""

from __future__ import annotations

import ctypes
import gc
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from original_files import (
    original_janus,
    sharded_bin,
    sharded_safetensors,
    single_bin,
    state_of,
    write_beside,
    write_original,
)
from original_janus import JANUS_PRO_1B, JANUS_PRO_7B, OriginalJanus, Sizes
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
)
from transformers.initialization import no_init_weights

from policy.checkpoint import expected_shapes, open_checkpoint
from policy.config import PolicyConfig
from policy.export import DROPPED, export_checkpoint, save_original
from policy.janus import Policy, load_model, load_policy
from policy.original_config import janus_config, original_config
from policy.original_layout import from_original, hf_names, is_dropped, place_of
from policy.tiny import tiny_janus, tiny_tokenizer, write_tiny_janus
from policy.weight_files import WeightFiles

ORIGINAL_SIDE_FILES = [
    "config.json", "preprocessor_config.json", "processor_config.json", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def original() -> OriginalJanus:
    return original_janus()


@pytest.fixture(scope="module")
def original_folder(original: OriginalJanus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(original, tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_janus(tmp_path_factory.mktemp("hf"), "hf", seed=2)


def _load(folder: Path, dtype: str = "float32") -> Policy:
    return load_policy(PolicyConfig(checkpoint=str(folder), dtype=dtype))  # type: ignore[arg-type]


@torch.inference_mode()
def _outputs(model: JanusForConditionalGeneration) -> list[Tensor]:
    """Text logits, image logits, decoded pictures, understanding features."""
    ids = torch.arange(12).reshape(1, 12) % model.config.text_config.vocab_size
    vq, vision = model.config.vq_config, model.config.vision_config
    codes = torch.arange(vq.num_patches**2).reshape(1, -1) * 7 % vq.num_embeddings
    states = model.model.language_model(
        inputs_embeds=model.prepare_embeddings_for_image_generation(codes)
    ).last_hidden_state
    side = vision.image_size
    pixels = torch.linspace(-1, 1, 3 * side * side, dtype=model.dtype).reshape(1, 3, side, side)
    return [
        model(input_ids=ids).logits,
        model.model.generation_head(states),
        model.model.vqmodel.decode(codes),
        model.model.get_image_features(pixels).pooler_output,
    ]


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Every stored tensor under its stored name."""
    files = WeightFiles(folder)
    return {name: files.read(name).clone() for name in files.tensors}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one
    )


def test_the_name_table_covers_the_originals_modules(original: OriginalJanus, original_folder: Path) -> None:
    """Every tensor of the original's modules has its place in transformers' model, and back; no more and no less."""
    theirs = original.state_dict()
    reached = [name for stored in theirs for name in hf_names(stored)]
    model = load_model(open_checkpoint(original_folder), torch.float32)
    assert sorted(reached) == sorted(model.state_dict())
    assert {place_of(name).name for name in reached} == {name for name in theirs if not is_dropped(name)}
    dropped = {name for name in theirs if is_dropped(name)}
    assert "gen_vision_model.quantize.codebook_used" in dropped
    assert all("attn_pool" in name or "codebook_used" in name for name in dropped) and len(dropped) == 14
    assert hf_names("gen_vision_model_.x") == hf_names("aligner.layers.1.weight") == ()


@pytest.mark.parametrize(("sizes", "millions"), [(JANUS_PRO_1B, 2089), (JANUS_PRO_7B, 7420)])
def test_the_released_sizes(sizes: Sizes, millions: int) -> None:
    """Config and shapes of the real architecture, without memory for it; transformers' defaults are Janus-Pro's."""
    with torch.device("meta"):
        model = OriginalJanus(sizes)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert sum(math.prod(shape) for shape in shapes.values()) // 10**6 == millions
    special = {"bos_token_id": 100000, "eos_token_id": 100001, "pad_token_id": 100002, "image_token_id": 100581}
    config = janus_config(model.config(), shapes, special)
    expected = expected_shapes(config)
    assert sorted(expected) == sorted(name for stored in shapes for name in hf_names(stored))
    for name, shape in expected.items():
        place = place_of(name)
        stored = torch.empty(shapes[place.name], device="meta")
        assert tuple(from_original(place, stored).shape) == shape, name
    hidden = sizes.language["hidden_size"]
    assert config.vision_config.to_dict() == JanusVisionConfig(projection_dim=hidden).to_dict()
    vq = JanusVQVAEConfig(projection_dim=hidden, image_token_embed_dim=hidden, num_patches=24).to_dict()
    assert config.vq_config.to_dict() == vq | {"channel_multiplier": [1, 1, 2, 2, 4]}
    assert {key: getattr(config.text_config, key) for key in sizes.language} == sizes.language
    again = original_config(config, "bfloat16")
    assert {key: again[key] for key in again if key != "language_config"} == {
        key: value for key, value in model.config().items() if key != "language_config"
    }
    assert janus_config(again, shapes, special).to_dict() == config.to_dict()


@torch.inference_mode()
def test_an_original_checkpoint_computes_what_its_own_model_does(
    original: OriginalJanus, original_folder: Path
) -> None:
    policy = _load(original_folder)
    config = policy.model.config
    assert config.text_config.num_key_value_heads == 2 and not config.tie_word_embeddings
    assert config.image_token_id == policy.tokenizer.get_vocab()["<image_placeholder>"]
    assert config.text_config.bos_token_id == policy.layout.bos != 1
    text, image, picture, features = _outputs(policy.model)
    ids = torch.arange(12).reshape(1, 12)
    assert torch.equal(text, original.language_model(ids).logits)
    codes = torch.arange(16).reshape(1, 16) * 7 % 96
    states = original.language_model.model(inputs_embeds=original.gen_aligner(original.gen_embed(codes)))
    assert torch.allclose(image, original.gen_head(states.last_hidden_state), atol=1e-6)
    assert torch.allclose(picture, original.gen_vision_model.decode_code(codes, 4), atol=1e-5)
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    seen = original.aligner(original.vision_model.vision_tower(pixels))
    assert torch.allclose(features, seen, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_equals_from_pretrained(hf_folder: Path, dtype: str) -> None:
    """Bit-equal weights, buffers and outputs, also in another number format than the stored one."""
    ours = _load(hf_folder, dtype).model
    theirs = AutoModelForImageTextToText.from_pretrained(hf_folder, dtype=getattr(torch, dtype)).eval()
    assert _same(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    assert _same(ours.state_dict(), theirs.state_dict())
    assert ours.dtype == theirs.dtype and not any(module.training for module in ours.modules())
    for one, other in zip(_outputs(ours), _outputs(theirs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("write", [single_bin, sharded_bin, sharded_safetensors])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_file(
    original: OriginalJanus, tmp_path: Path, write: Callable[..., None], dtype: torch.dtype
) -> None:
    state = {name: value.to(dtype) for name, value in state_of(original).items()}
    write(state, tmp_path)
    write_beside(original, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    read = {name: tensor.clone() for name, tensor in checkpoint.tensors()}
    assert {name: tuple(value.shape) for name, value in read.items()} == checkpoint.shapes()
    for name, value in read.items():
        place = place_of(name)
        whole = state[place.name]
        expected = whole.chunk(3)[place.part] if place.part is not None else whole.reshape(value.shape)
        assert torch.equal(value, expected) and value.dtype == dtype, name
        assert torch.equal(checkpoint.tensor(name), value)
    prefixes = ["model.language_model.", "lm_head."]
    assert {n for n, _ in checkpoint.tensors(prefixes)} == {n for n in read if n.startswith(tuple(prefixes))}


def test_original_to_hf_and_back(original: OriginalJanus, original_folder: Path, tmp_path: Path) -> None:
    hf, bare, full = tmp_path / "hf", tmp_path / "bare", tmp_path / "full"
    source = open_checkpoint(original_folder)
    exported = export_checkpoint(source, hf, "hf", shard_bytes=100_000)
    assert "attn_pool" in exported.left_out or "codebook_used" in exported.left_out
    assert len(list(hf.glob("model-*.safetensors"))) > 3
    # transformers itself takes the result, untied.
    model = JanusForConditionalGeneration.from_pretrained(hf)
    for one, other in zip(_outputs(model.eval()), _outputs(_load(original_folder).model), strict=True):
        assert torch.equal(one, other)

    assert export_checkpoint(open_checkpoint(hf), bare, "original").left_out == DROPPED
    kept = {name: value for name, value in state_of(original).items() if not is_dropped(name)}
    assert _same(_tensors(bare), kept)
    assert sorted(path.name for path in bare.glob("*.json")) == ORIGINAL_SIDE_FILES
    assert not export_checkpoint(open_checkpoint(hf), full, "original", base=source).left_out
    assert _same(_tensors(full), state_of(original))
    assert json.loads((full / "config.json").read_text()) == original.config()
    for folder in (bare, full):
        for one, other in zip(_outputs(_load(folder).model), _outputs(_load(original_folder).model), strict=True):
            assert torch.equal(one, other)


def test_hf_to_original_and_back(hf_folder: Path, tmp_path: Path) -> None:
    original, again = tmp_path / "original", tmp_path / "again"
    export_checkpoint(open_checkpoint(hf_folder), original, "original")
    export_checkpoint(open_checkpoint(original), again, "hf")
    assert _same(_tensors(again), _tensors(hf_folder))
    ours, theirs = open_checkpoint(again).config.to_dict(), open_checkpoint(hf_folder).config.to_dict()
    for part in ("text_config", "vision_config", "vq_config"):
        assert ours[part] == theirs[part], part
    for one, other in zip(_outputs(_load(again).model), _outputs(_load(original).model), strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="reads /proc")
def test_loading_holds_one_copy(large_folder: Path) -> None:
    """220 MB of float32 in one file, loaded as bfloat16: the peak grows by the model's 110 MB and little more."""

    def resident(kind: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(dict(line.split(":", 1) for line in lines)[kind].split()[0]) * 1024

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process kept would hide what loading takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = resident("VmRSS")
    _load(large_folder, "bfloat16")
    model = (large_folder / "model.safetensors").stat().st_size / 2
    assert 0.75 * model < resident("VmHWM") - before < 1.25 * model


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    tokenizer = tiny_tokenizer()
    with no_init_weights():
        model = tiny_janus(tokenizer, hidden=1024, layers=4, heads=16)
    for parameter in model.parameters():
        parameter.data.fill_(0.5)
    save_original(model, tokenizer, folder)
    return folder
