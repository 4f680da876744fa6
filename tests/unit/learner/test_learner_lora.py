"""An adapter that trains is the policy that actors merge, at any layout; nothing else trains, is saved or travels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from learner_cases import WEIGHTS, clone, random_groups
from learner_worker import Trained, train, train_and_resume
from pydantic import ValidationError

from learner import checkpoint
from learner.batching import plan_batch, training_rows
from learner.config import LearnerConfig, LoraConfig, ObjectiveConfig, OptimizerConfig
from learner.engine import LearnerEngine
from learner.loading import load_engine
from learner.process_group import join
from policy.config import PolicyConfig
from policy.janus import CheckpointError, Policy, load_policy
from policy.lora import SCALE, BaseWeights, received_adapter
from policy.scoring import Scorer, ScoreRows
from transport.rendezvous import Endpoint
from transport.trajectory import TrajectoryGroup

LORA = LoraConfig(rank=4, alpha=6.0)


def layout(stage: int = 0, lora: LoraConfig | None = LORA, checkpointing: bool | str = False) -> LearnerConfig:
    return LearnerConfig(
        zero_stage=stage,
        zero_persistence=0,
        micro_batch_tokens=60,
        gradient_checkpointing=checkpointing,
        lora=lora,
        optimizer=OptimizerConfig(lr=1e-2, eps=1e-2, schedule="linear", grad_norm=0.5),
        objective=ObjectiveConfig(beta=0.1),
    )


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> None:
    if not torch.distributed.is_initialized():
        join(0, 1, Endpoint("127.0.0.1", 0), None, deadline_s=60)


@pytest.fixture(scope="module")
def steps(tiny_policy: Policy) -> list[list[TrajectoryGroup]]:
    return [random_groups(tiny_policy, groups=3, members=4, seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def engine(tiny_policy: Policy, steps: list[list[TrajectoryGroup]]) -> LearnerEngine:
    """After two steps on one rank without ZeRO."""
    engine = LearnerEngine(clone(tiny_policy), "language_model", layout(), total_steps=9)
    first, second = (engine.step(groups, WEIGHTS) for groups in steps)
    assert first["kl"] == 0 and second["kl"] > 1e-4  # the model without its adapter is the reference, exactly
    return engine


@pytest.fixture(scope="module")
def plain(tiny_config: PolicyConfig, steps: list[list[TrajectoryGroup]]) -> Trained:
    return train(tiny_config, layout(), steps)


def rows_of(groups: list[TrajectoryGroup], policy: Policy) -> list[ScoreRows]:
    from learner.advantages import group_advantages

    scored = [group_advantages([m.rewards for m in g.members], WEIGHTS, ObjectiveConfig()) for g in groups]
    plan = plan_batch(training_rows(groups, scored, "guided", policy.layout), 1, 10_000)
    return [batch.score_rows() for batch in plan.micro_batches[0]]


def test_the_learner_is_the_policy_that_actors_merge(
    engine: LearnerEngine, tiny_config: PolicyConfig, steps: list[list[TrajectoryGroup]]
) -> None:
    merged = load_policy(tiny_config)
    adapter = received_adapter(list(engine.trained_tensors()))
    assert adapter is not None and adapter.scale == 1.5
    state = merged.model.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    for name, tensor in adapter.merged(BaseWeights(tiny_config).tensor):
        state[name].copy_(tensor)
    moved = [(state[name] - before[name]).abs().max() for name in adapter.matrices]
    assert min(moved) > 1e-4
    scorer = Scorer(merged.model, merged.layout)
    with torch.no_grad():
        for rows in rows_of(steps[0], merged):
            ours, _ = engine.engine.module(rows, "guided")
            theirs = scorer(rows, "guided")
            part = theirs.text or theirs.image
            assert part is not None
            torch.testing.assert_close(ours, part.logprobs, atol=1e-5, rtol=0)


def test_gradients_are_those_through_the_merged_weights(
    engine: LearnerEngine, tiny_policy: Policy, steps: list[list[TrajectoryGroup]]
) -> None:
    adapter = engine._adapter
    assert adapter is not None
    scorer = Scorer(tiny_policy.model, tiny_policy.layout)
    state = tiny_policy.model.state_dict()
    copies = {
        name: tuple(m.detach().clone().requires_grad_() for m in pair) for name, pair in adapter.pairs().items()
    }
    merged = {f"model.{name}": state[name] + adapter.scale * b @ a for name, (a, b) in copies.items()}
    for rows in rows_of(steps[0], tiny_policy):
        ours, _ = engine.engine.module(rows, "guided")
        theirs: Any = torch.func.functional_call(scorer, merged, (rows, "guided"))
        wanted = [matrix for pair in copies.values() for matrix in pair]
        expected = torch.autograd.grad((theirs.text or theirs.image).logprobs.sum(), wanted, retain_graph=True)
        got = torch.autograd.grad(ours.sum(), [matrix for pair in adapter.pairs().values() for matrix in pair])
        scale = max(float(gradient.abs().max()) for gradient in expected)
        assert scale > 1e-2
        for mine, gradient in zip(got, expected, strict=True):
            assert (mine - gradient).abs().max() <= 1e-5 * scale


def test_only_the_adapter_trains_and_travels(engine: LearnerEngine, tiny_policy: Policy) -> None:
    tensors = dict(engine.trained_tensors())
    text = tiny_policy.model.config.text_config
    hidden, inner = text.hidden_size, text.intermediate_size
    elements = text.num_hidden_layers * LORA.rank * (4 * (hidden + hidden) + 3 * (hidden + inner))
    assert all(name.startswith("lora.") for name in tensors)
    assert sum(tensor.nbytes for tensor in tensors.values()) == 4 * elements + 8
    optimized = [p for group in engine.engine.optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in optimized) == elements
    model = engine._policy.model
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == elements
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    base = tiny_policy.model.state_dict()
    for name, tensor in model.state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(tensor, base[name.replace(".base_layer.", ".")]), name


def test_targets_choose_the_layers(tiny_policy: Policy) -> None:
    config = layout(lora=LoraConfig(rank=2, targets=("q_proj", "down_proj")))
    engine = LearnerEngine(clone(tiny_policy), "language_model", config, total_steps=1)
    layers = {name.split(":")[1].split(".")[-2] for name, _ in engine.trained_tensors() if name != SCALE}
    assert layers == {"q_proj", "down_proj"}
    with pytest.raises(ValueError, match=r"policy\.trained must not be generation"):
        LearnerEngine(clone(tiny_policy), "generation", config, total_steps=1)


@pytest.mark.parametrize(
    "settings, told", [({"dropout": 0.1}, "dropout must be 0, got 0.1"), ({"targets": ("q_proj",) * 2}, "twice")]
)
def test_settings_that_make_no_sense(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        LoraConfig(**settings)


def test_the_loss_falls(tiny_policy: Policy, steps: list[list[TrajectoryGroup]]) -> None:
    config = layout().model_copy(update={"optimizer": OptimizerConfig(lr=3e-3)})
    engine = LearnerEngine(clone(tiny_policy), "language_model", config, total_steps=9)
    losses = [engine.step(steps[0], WEIGHTS)["loss"] for _ in range(4)]
    assert losses == sorted(losses, reverse=True) and losses[0] - losses[-1] > 0.02


def agree(got: Trained, plain: Trained) -> None:
    assert got.tensors.keys() == plain.tensors.keys()
    for name, tensor in plain.tensors.items():
        assert (got.tensors[name] - tensor).abs().max() <= 1e-5, name
    for mine, theirs in zip(got.metrics, plain.metrics, strict=True):
        for name in ("loss", "kl", "grad_norm", "tokens"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize(
    "stage, checkpointing", [(0, True), (2, "selective"), pytest.param(3, True, marks=pytest.mark.slow)]
)
def test_the_same_adapter_at_any_layout(
    tiny_config: PolicyConfig,
    plain: Trained,
    steps: list[list[TrajectoryGroup]],
    stage: int,
    checkpointing: bool | str,
) -> None:
    agree(train(tiny_config, layout(stage, checkpointing=checkpointing), steps), plain)


def test_resume_is_bit_identical(
    tiny_config: PolicyConfig, steps: list[list[TrajectoryGroup]], tmp_path: Path
) -> None:
    undisturbed, resumed = train_and_resume(tiny_config, layout(), steps, tmp_path)
    for name, tensor in undisturbed.tensors.items():
        assert torch.equal(tensor, resumed.tensors[name]), name
    weights = sum(file.stat().st_size for file in tmp_path.rglob("*model_states.pt"))
    adapter = sum(tensor.nbytes for tensor in resumed.tensors.values())
    assert weights < 4 * adapter + 100_000  # adapter, moments and DeepSpeed's own; the model has a megabyte
    other = load_engine(tiny_config, layout(lora=LoraConfig(rank=4, alpha=8.0)), total_steps=2)
    with pytest.raises(CheckpointError, match=r"it holds adapter_scale 1\.5, this run has 2\.0"):
        checkpoint.load(other, checkpoint.newest(tmp_path) or "")


@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_export(
    engine: LearnerEngine, tiny_config: PolicyConfig, steps: list[list[TrajectoryGroup]], tmp_path: Path, stage: int
) -> None:
    from peft import PeftModel

    if stage:
        engine = load_engine(tiny_config, layout(stage), total_steps=9)
        engine.step(steps[0], WEIGHTS)
    engine.export(tmp_path)
    read = load_policy(tiny_config.model_copy(update={"checkpoint": str(tmp_path)}))
    state = read.model.state_dict()
    adapter = received_adapter([(name, tensor.clone()) for name, tensor in engine.trained_tensors()])
    assert adapter is not None
    base = BaseWeights(tiny_config)
    for name, tensor in adapter.merged(base.tensor, base.shapes()):
        assert torch.equal(state[name], tensor), name
    ids = torch.arange(9)[None]
    peft_model: Any = PeftModel.from_pretrained(load_policy(tiny_config).model, str(tmp_path / "adapter"))
    with torch.no_grad():
        ours, theirs = read.model(input_ids=ids).logits, peft_model(input_ids=ids).logits
        plain = load_policy(tiny_config).model(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    assert (ours - plain).abs().max() > 1e-2
