"""The recipes of T2I-R1 ask the model what T2I-R1's released script asks it, token by token."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from paths import ROOT, SHARED

from policy.config import Templates
from policy.tiny import tiny_janus, tiny_tokenizer
from policy.tokens import PromptBuilder, TokenLayout
from recipe.config import RunConfig, load_config

DATA = SHARED / "data" / "t2i_r1"
SYSTEM = "You are a helpful assistant that receives an image prompt and generate a visualization of the prompt."
COTS = (
    "",
    " ",
    "\n",
    " A photo of a car, below it a zebra.",
    "A car stands below a zebra.",
    "\n\nA car stands below a zebra.\n",
    "  Two spaces, a tab\tand no end ",
    " “A zebra” — it’s 3½ m tall; <b>no</b> special tokens\n\n1. car\n2. zebra\n",
)

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data/t2i_r1 is absent")


def recipe(name: str) -> RunConfig:
    return load_config(ROOT / "deploy" / "runs" / f"{name}.yaml", [f"prompts.train={DATA / 'train.jsonl'}"])


def builder(templates: Templates) -> PromptBuilder:
    tokenizer = tiny_tokenizer()
    return PromptBuilder(tokenizer, TokenLayout.of(tokenizer, tiny_janus(tokenizer).config), templates)


def chat(user: str, system: str = "") -> str:
    """A turn of the script: plain role names, a blank line behind each part, no space around the user text."""
    parts = [system] if system else []
    return "\n\n".join([*parts, f"User: {user.strip()}", "Assistant:"])


def prompts() -> list[str]:
    """A few dozen of the released prompts, half of which end in a full stop."""
    lines = (DATA / "train.jsonl").read_text(encoding="utf-8").splitlines()
    every = [str(json.loads(line)["prompt"]) for line in lines]
    stopped = [prompt for prompt in every if prompt.endswith(".")]
    foreign = [prompt for prompt in every if not prompt.isascii()]
    assert len(every) == 7223 and len(stopped) == 1783 and len(foreign) == 2
    return [*every[::200], *stopped[::50], *foreign]


def test_the_script_s_recipe_sends_what_the_script_sends() -> None:
    build, tokenizer = builder(recipe("t2i_r1_code").policy.templates), tiny_tokenizer()
    boi = tokenizer.get_vocab()["<begin_of_image>"]
    instruction = (DATA / "reasoning_prompt.txt").read_text(encoding="utf-8")
    for prompt in prompts():
        asked = chat(instruction.replace("{}", prompt), SYSTEM)
        assert build.semantic_prompt(prompt) == tokenizer(asked)["input_ids"]
        for cot in COTS:
            drawn = [*tokenizer.encode(cot, add_special_tokens=False), tokenizer.eos_token_id]
            shown = chat(f"{prompt}. {tokenizer.decode(drawn, skip_special_tokens=True)}")
            ids = build.image_prompt(prompt, build.decode(drawn))
            assert ids == [*tokenizer(shown)["input_ids"], boi], (prompt, cot)


def test_the_script_s_sequences_written_out() -> None:
    build, tokenizer = builder(recipe("t2i_r1_code").policy.templates), tiny_tokenizer()
    begin = "<｜begin▁of▁sentence｜>"
    asked = tokenizer.decode(build.semantic_prompt("a photo of a car below a zebra"))
    assert asked.startswith(
        f"{begin}{SYSTEM}\n\nUser: You are asked to generate an image based on this prompt: "
        '"a photo of a car below a zebra"\nProvide a brief, precise'
    )
    assert asked.endswith("Output your visualization directly without explanation:\n\nAssistant:")
    for (prompt, cot), text in {
        ("a car below a zebra", " The car is red."): "a car below a zebra.  The car is red.",
        ("A car below a zebra.", " The car is red."): "A car below a zebra..  The car is red.",
        ("a car below a zebra", "The car is red.\n"): "a car below a zebra. The car is red.",
        ("a car below a zebra", ""): "a car below a zebra.",
        ("A car below a zebra.", ""): "A car below a zebra..",
    }.items():
        shown = tokenizer.decode(build.image_prompt(prompt, cot))
        assert shown == f"{begin}User: {text}\n\nAssistant:<begin_of_image>"


def test_the_paper_s_recipe_asks_the_same_in_janus_s_own_turns() -> None:
    paper, script = recipe("t2i_r1_7b").policy.templates, recipe("t2i_r1_code").policy.templates
    assert (paper.system, paper.instruction) == (script.system, script.instruction)
    assert (paper.chat, paper.join) == (Templates().chat, Templates().join)
    assert paper.chat == script.chat.replace("User", "<|User|>").replace("Assistant", "<|Assistant|>")


def test_the_script_s_recipe_takes_its_other_choices() -> None:
    config = recipe("t2i_r1_code")
    assert config.image.pixels == "truncate" and config.image.guidance_scale == 5
    assert (config.semantic.top_k, config.semantic.max_tokens, config.semantic.max_prompt_tokens) == (50, 1024, 512)
    objective, optimizer = config.learner.objective, config.learner.optimizer
    assert (objective.distribution, objective.clip, objective.beta) == ("conditional", False, 0.01)
    assert (optimizer.lr, optimizer.schedule, optimizer.weight_decay, optimizer.grad_norm) == (1e-6, "linear", 0, 1)
    assert config.rollout.group_size * config.rollout.groups_per_step == 8 * 1 * 2 * 8 and config.steps == 1600
    assert [(service.name, service.weight) for service in config.rewards.services] == [
        ("hps", 1), ("detector", 1), ("vqa", 1), ("orm", 1)
    ]  # fmt: skip
    assert config.rewards.services[0].options["dtype"] == "float16" and config.rewards.scoring == "t2i_r1_code"


def test_the_page_of_departures_says_what_the_recipe_sets() -> None:
    page = (ROOT / "docs" / "departures.md").read_text(encoding="utf-8")
    said = re.findall(r"`((?:policy|semantic|image|learner|rewards)\.[a-z_0-9.]+): ([^`]+)`", page)
    assert len(said) == 9
    for key, value in said:
        node: Any = recipe("t2i_r1_code").model_dump(mode="json")
        for part in key.split("."):
            node = node[int(part)] if isinstance(node, list) else node[part]
        assert yaml.safe_load(value if not isinstance(node, str) else f'"{value}"') == node, key
