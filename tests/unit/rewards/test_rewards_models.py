"""What all reward models have in common, on tiny random checkpoints in the real file layouts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from reward_cases import MIXED, PROMPTS, TARGETS, broken, config, load, tiny
from safetensors.torch import load_file, save_file

from rewards.base import RewardConfigError, check_reward, load_reward
from rewards.models.checkpoint import RewardCheckpointError
from rewards.models.tiny import write_tiny_rewards


@pytest.mark.parametrize("name", TARGETS)
def test_batched_and_one_by_one_agree(name: str) -> None:
    reward = load(name)
    together = reward.score(MIXED, PROMPTS)
    alone = [reward.score([picture], [prompt])[0] for picture, prompt in zip(MIXED, PROMPTS, strict=True)]
    assert [score is None for score in together] == [score is None for score in alone]
    scores = [score for score in together if score is not None]
    assert scores == pytest.approx([score for score in alone if score is not None], abs=1e-5)
    assert len(set(scores)) > 1 and all(-1 <= score <= 1 for score in scores)


@pytest.mark.parametrize("name", ["hps", "git_vqa", "orm"])
def test_half_precision_is_close(name: str) -> None:
    full, half = load(name).score(MIXED, PROMPTS), load(name, dtype="bfloat16").score(MIXED, PROMPTS)
    assert [s for s in half if s is not None] == pytest.approx([s for s in full if s is not None], abs=0.05)


@pytest.mark.parametrize("name", TARGETS)
def test_parameters_are_counted_without_loading(name: str) -> None:
    tensors = load(name)._model.state_dict()
    unique = {tensor.data_ptr(): tensor.numel() for tensor in tensors.values() if tensor.is_floating_point()}
    counted = type(load(name)).parameters(tiny()[name])
    assert counted == pytest.approx(sum(unique.values()), rel=0.01)


def test_checking_imports_no_model_library() -> None:
    code = (
        "import json, sys; from rewards.base import check_reward; from rewards.config import RewardConfig\n"
        "for fields in json.load(sys.stdin): check_reward(RewardConfig.model_validate(fields), 't2i_r1_code')\n"
        "print(sorted({'torch', 'transformers', 'httpx', 'ray'} & set(sys.modules)))"
    )
    judge = {
        "name": "judge",
        "target": "rewards.models.judge:Judge",
        "options": {"base_url": "http://x/v1", "model": "m"},
    }
    fields = [config(name, tiny()[name]).model_dump() for name in TARGETS] + [judge]
    run = [sys.executable, "-c", code]
    done = subprocess.run(
        run, input=json.dumps(fields), capture_output=True, text=True, check=False, timeout=240, cwd=ROOT
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("name", "what", "message"),
    [
        ("hps", "absent", r"absent\.pt: no such file; give HPS_v2\.1_compressed\.pt"),
        ("hps", "torn", r"x\.pt is not a file that torch\.save wrote, or torn"),
        ("hps", "keys", r"x\.pt holds no open_clip ViT under 'state_dict'"),
        ("grounding_dino", "weights", r"holds no \*\.safetensors or \*\.bin; give the folder of a Grounding DINO"),
        ("grounding_dino", "config", r"config\.json is of model type 'bert', not grounding-dino"),
        ("git_vqa", "config", r"config\.json is of model type 'bert', not git"),
        ("orm", "config", r"config\.json is of model type 'bert', not llava_onevision"),
        ("orm", "weights", r"holds no \*\.safetensors or pytorch_model"),
        ("orm", "dtype", r"dtype: 'int4' is none of float32"),
        ("hps", "dtype", r"dtype: 'int4' is none of float32"),
        ("git_vqa", "scoring", r"scoring: 'ours' is none of paper, t2i_r1_code"),
        ("grounding_dino", "box_threshold", r"box_threshold: 1\.5 is not in \[0, 1\)"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, name: str, what: str, message: str) -> None:
    values = {"dtype": "int4", "scoring": "ours", "box_threshold": 1.5}
    options = tiny()[name] | {what: values[what]} if what in values else broken(tmp_path, name, what)
    where = "" if what in values else "checkpoint: .*"
    with pytest.raises(RewardConfigError, match=rf"reward '{name}': options: .*{where}{message}"):
        check_reward(config(name, options))


def test_a_seed_is_one_set_of_files(tmp_path: Path) -> None:
    write_tiny_rewards(tmp_path, seed=0)
    files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    first = Path(tiny()["git_vqa"]["checkpoint"]).parent
    assert len(files) > 15
    assert [
        path.name for path in files if path.read_bytes() != (first / path.relative_to(tmp_path)).read_bytes()
    ] == []


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    options = broken(tmp_path, "git_vqa", "nothing")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["output.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RewardCheckpointError, match=r"1 tensors missing or misshapen: output\.weight"):
        load_reward(config("git_vqa", options))
