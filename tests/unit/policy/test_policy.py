"""The policy room: records, templates, loading, and one distribution for sampler and learner."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from paths import SHARED

from policy.config import Join, PolicyConfig, Templates
from policy.guidance import entropy, guided_logits, log_distribution
from policy.janus import CheckpointError, Policy, load_policy, save_policy, trained_parameters
from policy.pictures import decode_pictures, to_png
from policy.prompts import PromptFileError, PromptRecord, load_prompts, rows_by_task, spread
from policy.seeds import member_seed
from policy.tiny import tiny_janus
from policy.tiny import tiny_tokenizer as byte_tokenizer
from policy.tokens import PromptBuilder, TokenLayout, unconditional

T2I_R1 = SHARED / "data" / "t2i_r1" / "train.jsonl"
GOOD = {"prompt": "a red circle", "task_type": "object", "nouns": ["red circle"]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        (["{"], r":1: not valid JSON"),
        ([json.dumps(GOOD), json.dumps({**GOOD, "prompt": "b", "colour": 1})], r":2: colour: Extra inputs"),
        (
            [json.dumps(GOOD), "", json.dumps({"prompt": "b", "task_type": "object"})],
            r":3: nouns: Field required",
        ),
        ([json.dumps({**GOOD, "task_type": "odd"})], r":1: task_type: "),
        ([json.dumps(GOOD), json.dumps(GOOD)], r":2: the prompt 'a red circle' already stands in line 1"),
        (["[1]"], r":1: row: "),
    ],
)
def test_bad_prompt_files_name_the_line(tmp_path: Path, rows: list[str], message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(PromptFileError, match=message):
        load_prompts(path)


def test_only_a_line_feed_ends_a_row(tmp_path: Path) -> None:
    rows = [{"prompt": f"a\u2028{name}\u0085b", "task_type": "object", "nouns": ["x"]} for name in "cd"]
    path, exclude = tmp_path / "prompts.jsonl", tmp_path / "bench.txt"
    path.write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    exclude.write_text(rows[0]["prompt"] + "\n", encoding="utf-8")
    assert [record.prompt for record in load_prompts(path, [exclude])] == [rows[1]["prompt"]]


def test_missing_prompt_file() -> None:
    with pytest.raises(PromptFileError, match="no such prompt file"):
        load_prompts("nowhere.jsonl")


def test_excluded_prompts_are_left_out(tmp_path: Path) -> None:
    rows = [{"prompt": text, "task_type": "object", "nouns": ["x"]} for text in ("A red hat.", "a dog", "two cats")]
    train = tmp_path / "train.jsonl"
    train.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "bench.txt").write_text("a red  hat\na bird\n", encoding="utf-8")
    (tmp_path / "bench.jsonl").write_text('{"prompt": "Two cats"}\n', encoding="utf-8")
    left = load_prompts(train, [tmp_path / "bench.txt", tmp_path / "bench.jsonl"])
    assert [record.prompt for record in left] == ["a dog"]
    with pytest.raises(PromptFileError, match=r"none\.txt: no such file of prompts to exclude"):
        load_prompts(train, [tmp_path / "none.txt"])
    with pytest.raises(PromptFileError, match="every prompt of it is excluded"):
        load_prompts(train, [train])


@pytest.mark.skipif(not T2I_R1.is_file(), reason="needs ../shared/data/t2i_r1")
def test_spread_takes_every_group_in_turn() -> None:
    """A prompt's group is its family, or its task type where it has none."""
    records = [
        PromptRecord(prompt=name, task_type="color", nouns=("dog",), family=family)
        for name, family in (("a", "x"), ("b", "x"), ("c", "x"), ("d", None), ("e", "y"))
    ]
    assert [one.prompt for one in spread(records, 4)] == ["a", "d", "e", "b"]
    assert [one.prompt for one in spread(records, 9)] == ["a", "d", "e", "b", "c"]
    assert spread([], 3) == []


def test_t2i_r1_without_the_prompts_of_t2i_compbench() -> None:
    validation = sorted((T2I_R1.parents[1] / "t2i_compbench").glob("*_val*.txt"))
    left = {record.prompt for record in load_prompts(T2I_R1, validation)}
    gone = Counter(record.task_type for record in load_prompts(T2I_R1) if record.prompt not in left)
    assert gone == {"shape": 4, "spatial": 2}


@pytest.mark.skipif(not T2I_R1.is_file(), reason="../shared/data/t2i_r1/train.jsonl is absent")
def test_the_released_training_file() -> None:
    records = load_prompts(T2I_R1)
    counts = {"spatial": 2195, "numeracy": 1172, "color": 879, "complex": 700, "non": 700, "texture": 695}
    assert rows_by_task(records) == {**counts, "shape": 682, "object": 200}
    assert len({record.id for record in records}) == 7223


def test_two_stages_and_one_full_stop(tiny_policy: Policy) -> None:
    build, layout = tiny_policy.prompts, tiny_policy.layout
    ids = build.semantic_prompt("a red circle")
    assert tiny_policy.tokenizer.decode(ids) == "<bos> <|User|> : plan : a red circle <|Assistant|> :"
    with_stop = build.image_prompt("a red circle. ", "blue square left")
    assert with_stop == build.image_prompt("a red circle", "blue square left")
    assert tiny_policy.tokenizer.decode(with_stop).count(" . ") == 1
    assert with_stop[0] == layout.bos and with_stop[-1] == layout.boi
    assert "." not in tiny_policy.tokenizer.decode(build.image_prompt("a red circle", ""))


SENTENCE = {
    ("a red dog", " It sits."): "a red dog. It sits.",
    ("a red dog.", " It sits.\n"): "a red dog. It sits.",
    ("a red dog. ", "It sits."): "a red dog. It sits.",
    ("a red dog...", "\n\nIt sits."): "a red dog. It sits.",
    ("a red dog", ""): "a red dog",
    ("a red dog.", " \n"): "a red dog.",
    ("a {cot} dog", " A {prompt}."): "a {cot} dog. A {prompt}.",
}
VERBATIM = {
    ("a red dog", " It sits."): "a red dog.  It sits.",
    ("a red dog", "It sits."): "a red dog. It sits.",
    ("a red dog.", " It sits.\n"): "a red dog..  It sits.",
    ("a red dog.", "\n\nIt sits."): "a red dog.. \n\nIt sits.",
    ("a red dog", ""): "a red dog.",
    ("a red dog.", " \n"): "a red dog..",
    ("a {cot} dog", " A {prompt}."): "a {cot} dog.  A {prompt}.",
}


@pytest.mark.parametrize(("join", "expected"), [("sentence", SENTENCE), ("verbatim", VERBATIM)])
def test_how_prompt_and_cot_are_joined(join: Join, expected: dict[tuple[str, str], str]) -> None:
    tokenizer = byte_tokenizer()
    build = PromptBuilder(tokenizer, TokenLayout.of(tokenizer, tiny_janus(tokenizer).config), Templates(join=join))
    boi = tokenizer.get_vocab()["<begin_of_image>"]
    for (prompt, cot), user in expected.items():
        drawn = build.decode([*tokenizer.encode(cot, add_special_tokens=False), tokenizer.eos_token_id])
        assert drawn == cot, "space is kept until prompt and CoT are joined"
        ids = build.image_prompt(prompt, drawn)
        assert ids[-1] == boi and tokenizer.decode(ids[1:-1]) == f"<|User|>: {user}\n\n<|Assistant|>:"


def test_user_text_holds_no_special_tokens(tiny_policy: Policy) -> None:
    ids = tiny_policy.prompts.image_prompt("a <eos>red <begin_of_image>circle", "")
    assert ids == tiny_policy.prompts.image_prompt("a red circle", "")


def test_templates_need_their_slots() -> None:
    with pytest.raises(ValueError, match=r"instruction must hold the slot \{prompt\}"):
        Templates(instruction="plan")


def test_unconditional_keeps_bos_and_boi(tiny_policy: Policy) -> None:
    layout = tiny_policy.layout
    ids = torch.tensor(tiny_policy.prompts.image_prompt("a red circle", ""))
    bare = unconditional(ids, layout)
    assert bare[0] == layout.bos and bare[-1] == layout.boi and (bare[1:-1] == layout.pad).all()


def test_checkpoint_round_trip(tiny_policy: Policy, tiny_config: PolicyConfig) -> None:
    loaded = load_policy(tiny_config)
    for name, tensor in tiny_policy.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name
    assert loaded.layout == tiny_policy.layout
    assert loaded.model.lm_head.weight is not loaded.model.get_input_embeddings().weight


def test_bad_checkpoints(tiny_policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        load_policy(PolicyConfig(checkpoint=str(tmp_path / "none")))
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load_policy(PolicyConfig(checkpoint=str(tmp_path)))
    save_policy(tiny_policy.model, tiny_policy.tokenizer, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(CheckpointError, match=r"model\.safetensors \(15 bytes\) is cut short or damaged"):
        load_policy(PolicyConfig(checkpoint=str(tmp_path)))


def test_what_trains(tiny_policy: Policy) -> None:
    names = set(trained_parameters(tiny_policy.model, "language_model"))
    assert {"lm_head.weight", "model.language_model.embed_tokens.weight"} <= names
    assert not any("generation" in name or "vq" in name or "vision" in name for name in names)
    wider = set(trained_parameters(tiny_policy.model, "generation"))
    assert {name for name in wider - names if "generation_" not in name} == set() and wider > names


def test_guidance_equations() -> None:
    cond, bare = torch.randn(2, 3, 7, dtype=torch.float64).unbind(0)
    assert torch.allclose(guided_logits(cond, bare, 1.0), cond)
    assert torch.allclose(guided_logits(cond, bare, 0.0), bare)
    probs = torch.softmax(cond / 0.7, -1)
    assert torch.allclose(log_distribution(cond, 0.7).exp(), probs)
    assert torch.allclose(entropy(log_distribution(cond, 0.7)), torch.distributions.Categorical(probs).entropy())


def test_pictures(tiny_policy: Policy) -> None:
    tokens = torch.randint(32, (2, tiny_policy.layout.image_tokens))
    pictures = decode_pictures(tiny_policy.model, tokens)
    size = tiny_policy.layout.image_size
    assert pictures.shape == (2, size, size, 3) and pictures.dtype == "uint8"
    assert to_png(pictures[0]).startswith(b"\x89PNG")


def test_how_values_become_bytes(tiny_policy: Policy) -> None:
    tokens = torch.randint(32, (8, tiny_policy.layout.image_tokens))
    with torch.no_grad():
        decoded = tiny_policy.model.model.vqmodel.decode(tokens).double().permute(0, 2, 3, 1)
    values = ((decoded + 1) / 2 * 255).clamp(0, 255)
    nearest, lower = (decode_pictures(tiny_policy.model, tokens, pixels) for pixels in ("round", "truncate"))
    sure = ((values % 1 - 0.5).abs() < 0.499).numpy()  # not a float32's rounding away from the next byte
    assert sure.mean() > 0.9
    assert (lower == values.floor().numpy())[sure].all()
    assert (nearest == values.round().numpy())[((values % 1 - 0.5).abs() > 0.001).numpy()].all()
    assert 0.4 < (nearest - lower == 1).mean() < 0.6 and (nearest - lower).max() == 1


def test_seeds_differ_and_stay() -> None:
    assert member_seed(1, "ab", 0, 3) == member_seed(1, "ab", 0, 3)
    seeds = {member_seed(r, p, v, m) for r in range(3) for p in ("a", "b") for v in range(3) for m in range(8)}
    assert len(seeds) == 144 and all(0 <= seed < 2**63 for seed in seeds)


def test_a_prompt_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(PromptFileError, match=r"prompts\.jsonl: is not UTF-8 text \(byte 0\)"):
        load_prompts(path)
