"""What is wrong with a checkpoint is said by name: tensors, files, tokens; and `bicot export` refuses in time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from original_files import (
    original_janus,
    sharded_safetensors,
    single_bin,
    state_of,
    write_beside,
    write_original,
)
from original_janus import OriginalJanus
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cluster.cli import main
from policy.checkpoint import load_tokenizer, open_checkpoint
from policy.config import PolicyConfig, Templates
from policy.errors import CheckpointError
from policy.export import export_checkpoint
from policy.janus import check_checkpoint, load_policy
from policy.tiny import tiny_tokenizer, write_tiny_janus


@pytest.fixture(scope="module")
def original() -> OriginalJanus:
    return original_janus()


@pytest.fixture(scope="module")
def original_folder(original: OriginalJanus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(original, tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_janus(tmp_path_factory.mktemp("hf"), "hf", seed=2)


def test_errors_list_the_tensors(original: OriginalJanus, tmp_path: Path) -> None:
    state = state_of(original)
    for number in range(7):
        state[f"gen_vision_model.extra.{number}"] = torch.zeros(1)
    state["surplus.weight"] = torch.zeros(1)
    del state["gen_head.vision_head.bias"], state["vision_model.vision_tower.blocks.1.attn.qkv.bias"]
    state["gen_embed.weight"] = torch.zeros(96, 9)
    save_file(state, tmp_path / "model.safetensors")
    write_beside(original, tmp_path)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    text = str(caught.value)
    assert "2 missing: vision_model.vision_tower.blocks.1.attn.qkv.bias, gen_head.vision_head.bias;" in text
    assert "8 unknown: surplus.weight, gen_vision_model.extra.0, " in text and ", ..." in text
    assert "1 of the wrong shape: gen_embed.weight is [96, 9] and must be [96, 8]" in text
    with pytest.raises(CheckpointError, match=r"^policy\.checkpoint: "):
        check_checkpoint(tmp_path)


def test_config_and_weights_must_be_of_one_layout(hf_folder: Path, original_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((original_folder / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(hf_folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"config\.json is of the original layout, the tensors are not: model\."
    ):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="holds a llama model, not janus or multi_modality"):
        open_checkpoint(tmp_path)
    told = json.loads((hf_folder / "config.json").read_text())
    told["vision_config"]["hidden_size"] = "wide"
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=r"config\.json cannot be used: .*hidden_size"):
        open_checkpoint(tmp_path)


def test_sizes_are_read_off_tensors_that_must_be_there(original: OriginalJanus, tmp_path: Path) -> None:
    state = {name: value for name, value in state_of(original).items() if not name.startswith("gen_vision_model.")}
    save_file(state, tmp_path / "model.safetensors")
    write_beside(original, tmp_path)
    with pytest.raises(CheckpointError, match=r"does not fit the weights: there is no 'gen_vision_model\.quantize"):
        open_checkpoint(tmp_path)


def test_missing_and_truncated_files(original: OriginalJanus, tmp_path: Path) -> None:
    write_beside(original, tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no weights: none of model\.safetensors or"):
        open_checkpoint(tmp_path)
    sharded_safetensors(state_of(original), tmp_path)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=rf"00003\.safetensors \({len(whole) - 100} bytes\) is cut short"):
        open_checkpoint(tmp_path)
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"1 of 3 weight files .* are missing: model-00002-of"):
        check_checkpoint(tmp_path)
    for file in tmp_path.glob("model*"):
        file.unlink()
    single_bin(state_of(original), tmp_path)
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin .* is cut short or damaged"):
        open_checkpoint(tmp_path)


def test_a_pickle_that_would_run_code_is_refused(original: OriginalJanus, tmp_path: Path) -> None:
    write_beside(original, tmp_path)
    torch.save({"x": Path("somewhere")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_checkpoint(tmp_path)


def test_the_tokenizer_is_taken_as_its_file_says(original_folder: Path) -> None:
    """Not as the Llama class that the original's tokenizer_config.json names, which knows no bytes."""
    text = 'Plan: "A \tred circle"\n ö 图 12'
    tokenizer = load_tokenizer(original_folder)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == tiny_tokenizer().encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True
    )
    assert turn == Templates().chat.replace("{user}", "x")
    prompts = load_policy(PolicyConfig(checkpoint=str(original_folder))).prompts
    assert prompts.image_prompt("a <|Us<|User|>er|> dog<image_placeholder>", "") == prompts.image_prompt("a  dog", "")
    assert prompts.semantic_prompt("a dog")[1] == tokenizer.get_vocab()["<|User|>"]


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("<begin_of_image>", r"boi token id \(<begin_of_image>\) is None"),
        ("<｜▁pad▁｜>", "pad token id is None"),
        ("<|Assistant|>", r"no token <\|Assistant\|>, which policy\.templates\.chat uses"),
    ],
)
def test_missing_special_tokens(hf_folder: Path, tmp_path: Path, gone: str, message: str) -> None:
    for path in hf_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    kept = PreTrainedTokenizerFast(tokenizer_object=_without(tiny_tokenizer(), gone), **_named(gone))
    kept.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_policy(PolicyConfig(checkpoint=str(tmp_path)))
    with pytest.raises(CheckpointError, match=message):
        check_checkpoint(tmp_path, Templates())


def _without(tokenizer: PreTrainedTokenizerBase, token: str) -> Tokenizer:
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    told["added_tokens"] = [added for added in told["added_tokens"] if added["content"] != token]
    return Tokenizer.from_str(json.dumps(told))


def _named(gone: str) -> dict[str, str]:
    names = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>", "pad_token": "<｜▁pad▁｜>"}
    return {key: token for key, token in names.items() if token != gone}


def test_export_refuses(hf_folder: Path, original_folder: Path, tmp_path: Path) -> None:
    source = open_checkpoint(hf_folder)
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        export_checkpoint(source, tmp_path, "hf")
    with pytest.raises(CheckpointError, match="is in the Hugging Face layout"):
        export_checkpoint(source, tmp_path / "out", "original", base=source)
    with pytest.raises(CheckpointError, match=r"another size: \d+ tensors differ, first model\."):
        export_checkpoint(source, tmp_path / "out", "original", base=open_checkpoint(original_folder))
    assert not (tmp_path / "out").exists()


def test_export_command(hf_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    assert main(["export", str(run), str(out), "--to", "original"]) == 1
    assert "is not a folder" in capfd.readouterr().err
    run.mkdir()
    (run / "config.yaml").write_text("steps: 1")
    assert main(["export", str(run), str(out), "--to", "original"]) == 1
    assert "holds no exported policy yet" in capfd.readouterr().err
    (run / "policy").symlink_to(hf_folder)
    assert main(["export", str(run), str(out), "--to", "original"]) == 0
    told = capfd.readouterr().out
    assert "original layout" in told and "left out: vision_model.vision_tower.attn_pool.*" in told
    assert open_checkpoint(out).layout == "original"
    assert main(["export", str(run), str(out), "--to", "original"]) == 1
