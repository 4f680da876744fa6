"""`bicot generate`: draw pictures with a policy, in this process, with the same actors that a run's pools use."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.errors import ActorError
from actors.image_actor import ImageActor
from actors.requests import ImageRequest, SemanticRequest
from actors.semantic_actor import SemanticActor
from policy.janus import CheckpointError
from policy.pictures import to_png
from policy.prompts import PromptRecord
from policy.seeds import member_seed
from recipe.config import RunConfig
from recipe.errors import RunError
from transport.errors import TransportError

logger = logging.getLogger(__name__)

LOG = "generate.log"
"""The log beside the pictures, with the output of the engines and their libraries."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One picture: its path, and the semantic-level CoT behind it."""

    path: Path
    cot: str


def generate(config: RunConfig, prompts: Sequence[str], out: Path, members: int, seed: int) -> list[Drawn]:
    """Draw `members` pictures of each prompt with `policy.checkpoint` into the folder `out`.

    The same prompt and seed give the same picture.

    Raises:
        RunError: the checkpoint cannot be used, or an engine failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        return asyncio.run(_draw(config, prompts, out, members, seed))
    except CheckpointError as error:
        raise RunError(str(error)) from error
    except (ActorError, TransportError) as error:
        logger.exception("not drawn")
        raise RunError(f"{str(error).strip()}; see {out / LOG}") from error


async def _draw(config: RunConfig, prompts: Sequence[str], out: Path, members: int, seed: int) -> list[Drawn]:
    pairs = [(prompt, number) for prompt in prompts for number in range(members)]
    seeds = [member_seed(seed, _id(prompt), 0, number) for prompt, number in pairs]
    cots = await _write(config, [SemanticRequest(prompt, s) for (prompt, _), s in zip(pairs, seeds, strict=True)])
    requests = [ImageRequest(prompt, cot, s) for (prompt, _), cot, s in zip(pairs, cots, seeds, strict=True)]
    actor = ImageActor(config.policy, config.image)
    try:
        images = await actor.sample(requests)
    finally:
        actor.close()
    drawn = []
    for (prompt, number), cot, image in zip(pairs, cots, images, strict=True):
        path = out / f"{re.sub(r'[^A-Za-z0-9]+', '_', prompt).strip('_')[:80]}_{number:06d}.png"
        path.write_bytes(to_png(image.picture))
        drawn.append(Drawn(path, cot))
    return drawn


async def _write(config: RunConfig, requests: Sequence[SemanticRequest]) -> list[str]:
    if not config.semantic.enabled:
        return [""] * len(requests)
    actor = SemanticActor(config.policy, config.semantic)
    try:
        await actor.load_checkpoint()
        return [output.cot for output in await actor.generate(requests)]
    finally:
        actor.close()


def _id(prompt: str) -> str:
    return PromptRecord(prompt=prompt, task_type="non", nouns=("-",)).id
