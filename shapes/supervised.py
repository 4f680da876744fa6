"""Supervised warm start of the tiny Janus: it learns to plan and to draw from examples with deliberate flaws.

The flaws are the headroom for reinforcement learning: some plans are wrong (half of those of knowledge prompts), and
some pictures differ from their plan. Knowledge prompts are never drawn without a plan, so their pictures depend on
the plan. A tenth of the pictures has no prompt, for guidance.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random

import torch
from torch import nn

from policy.janus import Policy, trained_parameters
from policy.prompts import PromptRecord
from policy.scoring import Scorer, ScoreRows, SegmentRows
from policy.tokens import unconditional
from shapes.plans import laid_out, plan_of
from shapes.prompts import all_records
from shapes.vq_training import scene_codes
from shapes.world import COLOURS, FAMILIES, SHAPES, Asked, Thing, asked, place

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SupervisedRecipe:
    """Steps, sizes and flaws. Shares are probabilities of an example."""

    steps: int = 1500
    batch: int = 32
    learning_rate: float = 1.5e-3
    warm_up: int = 50
    weight_decay: float = 0.01
    families: Mapping[str, float] = field(
        default_factory=lambda: {
            "single": 0.12, "binding": 0.25, "spatial": 0.25, "counting": 0.18, "knowledge": 0.2,
        }
    )  # fmt: skip
    wrong_plan: float = 0.15
    wrong_knowledge: float = 0.5
    wrong_picture: float = 0.15  # differs from its plan, or from its prompt where there is no plan
    without_plan: float = 0.35
    without_condition: float = 0.1


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt, the plan to learn, the plan shown when drawing ("" for none), and what the picture shows."""

    record: PromptRecord
    plan: str
    shown_plan: str
    picture: Asked


def _altered(thing: Thing, random: Random) -> Thing:
    """`thing` in another colour or another shape."""
    if random.random() < 0.5:
        return replace(thing, colour=random.choice([c for c in COLOURS if c != thing.colour]))
    return replace(thing, shape=random.choice([s for s in SHAPES if s != thing.shape]))


def flawed(what: Asked, random: Random) -> Asked:
    """`what` with one mistake: a wrong direction, colours swapped, one thing too many or too few, or altered."""
    things, count = what.things, len(what.things)
    if what.direction is not None and random.random() < 0.5:
        return Asked(things, random.choice([d for d in ((-1, 0), (1, 0), (0, -1), (0, 1)) if d != what.direction]))
    if count > 1 and len(set(things)) == 1:  # a count
        number = random.choice([n for n in (count - 1, count + 1) if n <= 4])
        return Asked(things[:1] * number)
    if count == 2 and random.random() < 0.5:
        first, second = things
        swapped = (Thing(second.colour, first.shape), Thing(first.colour, second.shape))
        return Asked(swapped, what.direction)
    number = random.randrange(count)
    return Asked(tuple(_altered(t, random) if i == number else t for i, t in enumerate(things)), what.direction)


def examples(recipe: SupervisedRecipe, random: Random) -> Iterator[Example]:
    """Endless training examples from the train split."""
    pools = {family: all_records("train", family) for family in FAMILIES}
    while True:
        family = random.choices(list(recipe.families), list(recipe.families.values()))[0]
        record = random.choice(pools[family])
        knowledge = family == "knowledge"
        truth = asked(record)
        if family == "binding":
            truth = laid_out(truth, random.choice(("row", "column")))
        wrong = random.random() < (recipe.wrong_knowledge if knowledge else recipe.wrong_plan)
        planned = flawed(truth, random) if wrong else truth
        with_plan = knowledge or random.random() >= recipe.without_plan
        shown = planned if with_plan else asked(record)
        picture = flawed(shown, random) if random.random() < recipe.wrong_picture else shown
        yield Example(record, plan_of(planned), plan_of(planned) if with_plan else "", picture)


def _rows(policy: Policy, batch: list[Example], recipe: SupervisedRecipe, random: Random) -> ScoreRows:
    """The text rows (plan and EOS) and the image rows (picture's tokens) of a batch."""
    build, layout = policy.prompts, policy.layout
    ask = [torch.tensor(build.semantic_prompt(example.record.prompt)) for example in batch]
    plans = [
        torch.tensor([*policy.tokenizer.encode(example.plan, add_special_tokens=False), layout.eos])
        for example in batch
    ]
    draw, pictures = [], []
    for example in batch:
        prompt = torch.tensor(build.image_prompt(example.record.prompt, example.shown_plan))
        dropped = random.random() < recipe.without_condition
        draw.append(unconditional(prompt, layout) if dropped else prompt)
        pictures.append(torch.tensor(scene_codes(place(example.picture, random))))
    few = len(batch) // 2  # plans are learned faster than pictures
    return ScoreRows(text=SegmentRows(ask[:few], plans[:few]), image=SegmentRows(draw, pictures))


def initialise(policy: Policy) -> None:
    """Start image embeddings, aligner and head at the scale of their fan-in.

    With transformers' std of 0.02 in each of three layers, all image tokens look alike to the language model and
    training stalls.
    """
    core = policy.model.model
    for part in (core.generation_aligner, core.generation_head):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
    nn.init.normal_(core.generation_embeddings.weight)
    nn.init.normal_(core.language_model.embed_tokens.weight, std=0.1)


def train_supervised(policy: Policy, recipe: SupervisedRecipe, seed: int) -> None:
    """Train language model, image embeddings, aligner and head of `policy` in place, and leave it in eval mode."""
    random = Random(seed)
    torch.manual_seed(seed)
    initialise(policy)
    scorer = Scorer(policy.model, policy.layout).train()
    parameters = list(trained_parameters(policy.model, "generation").values())
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )

    def schedule(step: int) -> float:
        """Linear warm-up, then a cosine to zero."""
        return min(1.0, (step + 1) / recipe.warm_up) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    source, began = examples(recipe, random), time.monotonic()
    losses: list[tuple[float, float]] = []
    for step in range(recipe.steps):
        batch = [next(source) for _ in range(recipe.batch)]
        scores = scorer(_rows(policy, batch, recipe, random), "conditional")
        text_loss, image_loss = -scores.text.logprobs.mean(), -scores.image.logprobs.mean()
        optimizer.zero_grad(set_to_none=True)
        (image_loss + 0.5 * text_loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        losses.append((text_loss.item(), image_loss.item()))
        if (step + 1) % 50 == 0:
            text, image = (sum(column) / len(losses) for column in zip(*losses, strict=True))
            seconds = time.monotonic() - began
            log.info(
                "step %d/%d: plan loss %.3f, picture loss %.4f, %.0f s", step + 1, recipe.steps, text, image, seconds
            )
            losses.clear()
    policy.model.eval()
