"""The run config, prompt order, and what a wrong run is told before anything starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from cluster.cli import main
from cluster.prompt_order import PromptOrder
from policy.prompts import PromptRecord
from recipe.config import dump_config, load_config
from recipe.errors import ConfigError, RunError
from recipe.resources import alone, needed
from recipe.run_folder import RunFolder

SHAPES = ROOT / "deploy" / "runs" / "shapes.yaml"
T2I_R1 = ROOT.parent / "shared" / "data" / "t2i_r1" / "train.jsonl"


def bicot(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "cluster", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_overrides_and_round_trip(tmp_path: Path) -> None:
    config = load_config(
        SHAPES, ["learner.optimizer.lr=1e-5", "rewards.services.1.weight=0", "policy.dtype=bfloat16"]
    )
    assert config.learner.optimizer.lr == 1e-5
    assert config.rewards.services[1].weight == 0
    assert config.policy.dtype == "bfloat16"
    copy = tmp_path / "run.yaml"
    copy.write_text(dump_config(config), encoding="utf-8")
    assert load_config(copy) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.lrr=1", r"learner\.lrr: unknown key"),
        ("stepps=1", r"stepps: unknown key"),
        ("steps=0", r"steps: .*greater than or equal to 1"),
        ("rollout.group_size=one", r"rollout\.group_size: "),
        ("held_out.metric=beauty", r"held_out\.metric: 'beauty' is none of the reward services"),
        ("buffer.capacity=3", r"buffer\.capacity: 3 groups cannot hold the 16"),
        ("rewards.services.9.weight=0", r"'9' is no index of a list of 4"),
        ("image.cuda_graph=true", r"image: .*the image pool has no GPU"),
        ("steps.more=1", r"steps is a value and has no keys"),
        ("steps", r"write key\.subkey=value"),
    ],
)
def test_bad_keys_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(SHAPES, [override])


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        ("0 1 1", r"weights\.transport: nccl .* these pools have both \(learner\.gpus 0, image\.gpus 1"),
        ("1 0.5 1", r"weights\.transport: nccl refuses two members on one GPU.*image\.gpus 0\.5"),
    ],
)
def test_a_broadcast_that_no_backend_serves_is_refused(gpus: str, message: str) -> None:
    learner, image, semantic = gpus.split()
    pools = [f"learner.gpus={learner}", f"image.gpus={image}", f"semantic.gpus={semantic}"]
    with pytest.raises(ConfigError, match=message):
        load_config(SHAPES, ["weights.transport=nccl", *pools])
    load_config(SHAPES, ["weights.transport=object_store", *pools])


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: no such run config"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.yaml: cannot be read as YAML"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- a", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"list\.yaml: a run config is a mapping"):
        load_config(tmp_path / "list.yaml")


def test_an_instruction_may_lie_beside_the_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    there = tmp_path / "elsewhere"
    there.mkdir()
    overrides = ["policy.templates.instruction={file: data/plan.txt}", f"prompts.train={there / 'train.jsonl'}"]
    with pytest.raises(ConfigError, match=r"neither data/plan\.txt nor .*elsewhere/plan\.txt is there"):
        load_config(SHAPES, overrides)
    write(there / "plan.txt", 'Plan "{}".', "")
    assert load_config(SHAPES, overrides).policy.templates.instruction == 'Plan "{prompt}".'
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "plan.txt", "Draw {prompt}.")
    assert load_config(SHAPES, overrides).policy.templates.instruction == "Draw {prompt}."


def test_every_prompt_once_an_epoch() -> None:
    records = [PromptRecord(prompt=f"p{n}", task_type="object", nouns=("x",)) for n in range(7)]
    order = PromptOrder(records, seed=3, shuffle=True)
    epochs = [[order[7 * epoch + place] for place in range(7)] for epoch in range(3)]
    for number, epoch in enumerate(epochs):
        assert {visit.prompt.prompt for visit in epoch} == {record.prompt for record in records}
        assert {visit.visit for visit in epoch} == {number}
    assert [v.prompt for v in epochs[0]] != [v.prompt for v in epochs[1]]
    again = PromptOrder(records, seed=3, shuffle=True)
    assert [again[index].group_id for index in range(21)] == [visit.group_id for epoch in epochs for visit in epoch]
    assert [PromptOrder(records, 3, shuffle=False)[index].prompt for index in range(7)] == records


def test_a_part_that_runs_alone_reserves_its_own() -> None:
    config = load_config(SHAPES, ["image.resources={rack: 1}", "learner.gpus=1"])
    whole = {name: pool.kinds() for name, pool in needed(config).items()}
    for parts in (("learner",), ("semantic", "image", "rewards")):
        for name, pool in needed(alone(config, *parts)).items():
            reserved = whole[name] if name.startswith(parts) or name.split()[0] + "s" in parts else {}
            assert {kind: amount for kind, amount in pool.kinds().items() if amount} == {
                kind: amount for kind, amount in reserved.items() if amount
            }, name


def test_a_run_folder_is_never_overwritten(tmp_path: Path) -> None:
    config = load_config(SHAPES, [f"folder={tmp_path / 'run'}"])
    folder = RunFolder(config.folder)
    with pytest.raises(RunError, match="holds no run to resume"):
        folder.create(config, resume=True, fresh=False)
    folder.create(config, resume=False, fresh=False)
    with pytest.raises(RunError, match="already holds a run"):
        folder.create(config, resume=False, fresh=False)
    (folder.path / "mark").touch()
    longer = load_config(SHAPES, [f"folder={tmp_path / 'run'}", "steps=200", "rollout.keep_groups=5"])
    folder.create(longer, resume=True, fresh=False)
    assert load_config(folder.config) == longer
    other = load_config(SHAPES, [f"folder={tmp_path / 'run'}", "rollout.staleness=0"])
    with pytest.raises(RunError, match=r"was run with another rollout\.staleness"):
        folder.create(other, resume=True, fresh=False)
    assert (folder.path / "mark").exists()
    other = load_config(SHAPES, [f"folder={tmp_path / 'run'}", "rewards.services.detector.weight=2"])
    with pytest.raises(RunError, match=r"another rewards\.services\.detector\.weight; "):
        folder.create(other, resume=True, fresh=False)
    aside = folder.create(config, resume=False, fresh=True)
    assert not (folder.path / "mark").exists()
    assert aside and (aside / "mark").exists() and aside.parent == tmp_path


def test_check_of_the_shipped_run() -> None:
    done = bicot("check", "deploy/runs/shapes.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout and "prompts.train: shapes/data/train.jsonl" in done.stdout
    assert "parameters" in done.stdout


def write(path: Path, *rows: str) -> str:
    path.write_text("\n".join(rows), encoding="utf-8")
    return str(path)


GOOD_ROW = json.dumps({"prompt": "a red circle", "task_type": "object", "nouns": ["red circle"]})


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["policy.checkpoint=nowhere"], "policy.checkpoint: nowhere is not a folder"),
        (["prompts.train=nowhere.jsonl"], "nowhere.jsonl: no such prompt file"),
        (["prompts.train={empty}"], "the prompt file is empty"),
        (["prompts.train={malformed}"], ":2: not valid JSON"),
        (["image.replicas=900"], "the pools ask for"),
        (["buffer.url=redis://:secret@127.0.0.1:1/0"], "127.0.0.1:1"),
        (["rewards.services.0.target=shapes.rewards:Nothing"], "has no class 'Nothing'"),
    ],
)
def test_a_wrong_run_ends_with_one_sentence(
    tmp_path: Path,
    overrides: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything starts; in this process, whose environment is put back."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(ROOT)
    files = {
        "empty": write(tmp_path / "empty.jsonl"),
        "malformed": write(tmp_path / "malformed.jsonl", GOOD_ROW, "{not json"),
    }
    filled = [override.format(**files) for override in overrides]
    assert main(["train", "deploy/runs/shapes.yaml", f"folder={tmp_path / 'run'}", *filled]) == 1
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if line.startswith("bicot: ")]
    assert len(lines) == 1 and sentence in lines[0], told.err
    assert "Traceback" not in told.err and "secret" not in told.err + told.out
    assert not (tmp_path / "run").exists()


def test_a_wrong_key_ends_the_command() -> None:
    done = bicot("train", "deploy/runs/shapes.yaml", "learner.optimiser.lr=1")
    assert done.returncode == 1 and "learner.optimiser: unknown key" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""


@pytest.mark.skipif(not T2I_R1.is_file(), reason="../shared/data/t2i_r1/train.jsonl is absent")
def test_check_reports_the_released_prompts_by_task_type() -> None:
    done = bicot("check", "deploy/runs/t2i_r1_7b.yaml", f"prompts.train={T2I_R1}")
    assert "7,223 prompts (spatial 2,195, numeracy 1,172, color 879" in done.stdout
    assert "policy.checkpoint" in done.stdout and done.returncode == 1  # the checkpoint is the user's to bring
