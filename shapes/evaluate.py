"""Scores a checkpoint on the shapes world with the run-time image sampler, by prompt family.

Usage: python -m shapes.evaluate CHECKPOINT [--split dev] [--samples 4] [--guidance 2] [--no-plan]
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from actors.sampler import ImageSampler, SampleRequest
from policy.config import PolicyConfig
from policy.janus import Policy, load_policy
from policy.pictures import decode_pictures
from policy.prompts import PromptRecord, load_prompts
from policy.seeds import member_seed
from shapes import judge
from shapes.plans import MAX_PLAN_TOKENS, plan_is_right
from shapes.prompts import DATA, SPLITS
from shapes.tokenizer import TEMPLATES
from shapes.world import FAMILIES


@dataclass(frozen=True, slots=True)
class Sample:
    """One member: its prompt, its plan ("" without), its picture uint8 [48, 48, 3], and what the judge says."""

    record: PromptRecord
    plan: str
    picture: np.ndarray
    right: bool

    @property
    def plan_right(self) -> bool:
        """Whether the plan asks for exactly what the prompt does."""
        return plan_is_right(self.record, self.plan)


@torch.inference_mode()
def sample_plans(policy: Policy, prompts: Sequence[str], seed: int, temperature: float = 1.0) -> list[str]:
    """Draw one plan a prompt, all together, by plain re-reading of the whole prefix (plans are short)."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.tensor(policy.prompts.semantic_prompt(prompt)) for prompt in prompts]
    plans: list[list[int]] = [[] for _ in rows]
    for _ in range(MAX_PLAN_TOKENS):
        lengths = torch.tensor([len(row) for row in rows])
        ids = pad_sequence(rows, batch_first=True, padding_value=policy.layout.pad)
        states = policy.model.model.language_model(input_ids=ids, use_cache=False).last_hidden_state
        logits = policy.model.lm_head(states[torch.arange(len(rows)), lengths - 1]).float()
        drawn = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        for index, token in enumerate(drawn):
            if not plans[index] or plans[index][-1] != policy.layout.eos:
                plans[index].append(int(token))
                rows[index] = torch.cat([rows[index], token])
    return [policy.prompts.decode(plan) for plan in plans]


def draw_samples(
    policy: Policy,
    records: Sequence[PromptRecord],
    samples: int,
    guidance_scale: float,
    with_plan: bool = True,
    seed: int = 0,
    batch_size: int = 64,
) -> list[Sample]:
    """Draw `samples` members of every record at temperature 1 and judge them."""
    members = [(record, member) for record in records for member in range(samples)]
    prompts = [record.prompt for record, _ in members]
    plans = sample_plans(policy, prompts, seed) if with_plan else [""] * len(members)
    sampler = ImageSampler(policy, batch_size, guidance_scale, temperature=1.0)
    images = sampler.sample(
        [
            SampleRequest(
                torch.tensor(policy.prompts.image_prompt(record.prompt, plan)),
                member_seed(seed, record.id, 0, member),
            )
            for (record, member), plan in zip(members, plans, strict=True)
        ]
    )
    pictures = np.concatenate(
        [
            decode_pictures(policy.model, torch.stack([image.token_ids for image in images[i : i + batch_size]]))
            for i in range(0, len(images), batch_size)
        ]
    )
    return [
        Sample(record, plan, picture, judge.is_right(record, picture))
        for (record, _), plan, picture in zip(members, plans, pictures, strict=True)
    ]


def table(samples: Sequence[Sample]) -> str:
    """A Markdown table: share of right pictures and of right plans by family, and the mean over families."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.record.group].append(sample)
    names = [family for family in FAMILIES if family in groups]
    lines = [f"| | {' | '.join(names)} | mean |", "| --- |" + " --- |" * (len(names) + 1)]
    for title, measure in (("pictures right", "right"), ("plans right", "plan_right")):
        means = [float(np.mean([getattr(sample, measure) for sample in groups[name]])) for name in names]
        lines.append(f"| {title} | " + " | ".join(f"{mean:.2f}" for mean in [*means, float(np.mean(means))]) + " |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--split", choices=SPLITS, default="dev")
    parser.add_argument("--samples", type=int, default=4, help="pictures a prompt")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--no-plan", action="store_true", help="draw from the prompt alone")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    config = PolicyConfig(checkpoint=arguments.checkpoint, dtype="float32", templates=TEMPLATES)
    records = load_prompts(DATA / f"{arguments.split}.jsonl")
    samples = draw_samples(
        load_policy(config), records, arguments.samples, arguments.guidance, not arguments.no_plan, arguments.seed
    )
    sys.stdout.write(table(samples) + "\n")


if __name__ == "__main__":
    main()
