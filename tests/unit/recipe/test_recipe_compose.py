"""Recipes that stand on recipes, overrides, and YAML as people write it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from recipe.config import RunConfig, dump_config, load_config
from recipe.errors import ConfigError
from recipe.yaml_text import dump, load

SHAPES = ROOT / "deploy" / "runs" / "shapes.yaml"
WHOLE = """\
folder: runs/whole
steps: 5
policy: {checkpoint: somewhere, templates: {system: "costs ${money}"}}
prompts: {train: a.jsonl, exclude: [b.txt, c.txt]}
learner: {ranks: 2, optimizer: {lr: 1e-5, schedule: linear}}
held_out: {metric: two, dev: d.jsonl}
rewards:
  start_deadline_s: 60
  services:
    - {name: one, target: "rewards.models.hps:Hps", options: {dtype: bfloat16, batch: 3}, gpus: 0.5}
    - {name: two, target: "rewards.models.orm:Orm", weight: 2}
    - {name: three, target: "shapes.rewards:Strict"}
"""

ON_WHOLE = "base: bases/whole.yaml\n"
NUMBERS = st.from_regex(r"[-+]?\d+\.?\d*[eE][-+]?\d+")
LINE_ENDS = st.text("a \n\r\x85\u2028\u2029\ufeff'\"")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write(tmp_path / "bases" / "whole.yaml", WHOLE)


def on_whole(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    return load_config(write(tmp_path / "own.yaml", ON_WHOLE + text), overrides)


def test_a_recipe_on_another_says_only_what_differs(tmp_path: Path, whole: Path) -> None:
    config = on_whole(tmp_path, "folder: runs/own\nlearner: {optimizer: {lr: 2e-5}}")
    expected = load_config(whole, ["folder=runs/own", "learner.optimizer.lr=2e-5"])
    assert config == expected and config.learner.optimizer.schedule == "linear" and config.learner.ranks == 2
    resolved = write(tmp_path / "resolved.yaml", dump_config(config))
    assert load_config(resolved) == config
    assert "base" not in yaml.safe_load(resolved.read_text(encoding="utf-8"))


def test_chains_are_followed_from_file_to_file(tmp_path: Path, whole: Path) -> None:
    write(tmp_path / "bases" / "middle.yaml", "base: whole.yaml\nsteps: 7\nseed: 3")
    config = load_config(write(tmp_path / "deep" / "own.yaml", "base: ../bases/middle.yaml\nseed: 4"))
    assert (config.steps, config.seed, config.folder) == (7, 4, "runs/whole")


def test_lists_and_values_replace_and_null_is_a_value(tmp_path: Path, whole: Path) -> None:
    config = on_whole(tmp_path, "prompts: {exclude: [d.txt]}\nheld_out: null")
    assert config.prompts.exclude == ("d.txt",) and config.prompts.train == "a.jsonl" and config.held_out is None
    services = "[{name: only, target: 'my:Own'}]"
    config = on_whole(tmp_path, f"held_out: null\nrewards: {{services: {services}}}")
    assert [service.name for service in config.rewards.services] == ["only"]
    assert config.rewards.start_deadline_s == 60


def test_reward_services_are_changed_by_name(tmp_path: Path, whole: Path) -> None:
    changes = (
        "rewards: {services: {two: {weight: 0}, one: {options: {batch: 4}}, three: null, new: {target: 'my:Own'}}}"
    )
    one, two, new = on_whole(tmp_path, changes).rewards.services
    assert (one.name, one.gpus, one.options) == ("one", 0.5, {"dtype": "bfloat16", "batch": 4})
    assert (two.name, two.weight, two.target) == ("two", 0, "rewards.models.orm:Orm")
    assert (new.name, new.target, new.weight) == ("new", "my:Own", 1)


def test_services_by_name_need_no_base(tmp_path: Path) -> None:
    text = WHOLE.partition("  services:")[0] + "  services: {two: {target: 'my:Own'}, one: {target: 'my:Other'}}"
    config = load_config(write(tmp_path / "run.yaml", text), ["rewards.services.one.weight=3"])
    assert [(service.name, service.weight) for service in config.rewards.services] == [("two", 1), ("one", 3)]


def test_overrides_name_services(whole: Path) -> None:
    config = load_config(whole, ["rewards.services.two.weight=0.5", "rewards.services.0=null"])
    assert [(service.name, service.weight) for service in config.rewards.services] == [("two", 0.5), ("three", 1)]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("base: own.yaml", r"own\.yaml: base: recipes build .* in a circle: \S*own\.yaml > \S*own\.yaml$"),
        ("base: ring.yaml", r"ring\.yaml: base: recipes build .*: \S*own\.yaml > \S*ring\.yaml > \S*own\.yaml$"),
        ("base: none.yaml", r"own\.yaml: base: .*none\.yaml: no such file$"),
        ("base: [bases/whole.yaml]", r"own\.yaml: base: write the path of one recipe"),
        ("base: list.yaml", r"list\.yaml: a run config is a mapping of keys"),
        (
            ON_WHOLE + "rewards: {services: {thre: null}}",
            r"own\.yaml: rewards\.services\.thre: null .*one, two, three",
        ),
        (ON_WHOLE + "learner: {lr: 1}", r"^\S*own\.yaml: learner\.lr: unknown key; did .* learner\.optimizer\.lr"),
        ("base: wrong.yaml\nseed: 1", r"^\S*wrong\.yaml: learner\.ranks: .*greater than or equal to 1, not 0$"),
        ("base: wrong.yaml\nlearner: {ranks: -1}", r"^\S*own\.yaml: learner\.ranks: .*not -1$"),
        (
            ON_WHOLE + "rewards: {services: {two: {wieght: 1}}}",
            r"^\S*own\.yaml: rewards\.services\.1\.wieght: unknown key; did you mean rewards\.services\.1\.weight",
        ),
    ],
)
def test_what_is_wrong_names_the_file_that_says_it(tmp_path: Path, whole: Path, own: str, message: str) -> None:
    write(tmp_path / "ring.yaml", "base: own.yaml")
    write(tmp_path / "list.yaml", "- a")
    write(tmp_path / "wrong.yaml", "base: bases/whole.yaml\nlearner: {ranks: 0}")
    with pytest.raises(ConfigError, match=message) as raised:
        load_config(write(tmp_path / "own.yaml", own))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr=1e-5", r"^override lr=\.\.\.: lr: unknown key; did you mean learner\.optimizer\.lr\?$"),
        ("rewards.services.three.wait=1", r"^override .*: rewards\.services\.2\.wait: .*rewards\.services\.2\.w"),
        ("rewards.services.7.weight=1", r"'7' is no index of a list of 3, nor one of its names \(one, two, three\)"),
        ("rewards.services.tow.weight=1", r"'tow' is no index of a list of 3, nor one of its names"),
        ("prompts.exclude.2=x", r"'2' is no index of a list of 2$"),
        ("steps.more=1", r"steps is a value and has no keys"),
        ("learner=5", r"^override learner=\.\.\.: learner: is a section of keys, not a value$"),
        ("steps=[1", r"the value is not valid YAML"),
        ("base=other.yaml", r"base is a key of the file"),
        ("steps=many", r"^override steps=\.\.\.: steps: write a whole number, not 'many'$"),
        ("semantic.resources.a=-1", r"^override .*: semantic\.resources\.a: .*greater than 0, not -1$"),
        ("learner.gradient_checkpointing=x", r"override .*: learner\.gradient_checkpointing: .*'selective', not 'x'"),
        ("folder=12", r"^override folder=\.\.\.: folder: write a text.*, not 12$"),
        ("learner.optimizer.lr=.inf", r"learner\.optimizer\.lr: .*finite number"),
        ("learner.optimizer.lr=.nan", r"learner\.optimizer\.lr: .*finite number"),
        ("rewards.services.1.deadline_s=.inf", r"rewards\.services\.1\.deadline_s: .*finite number"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_override(whole: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(whole, ["seed=1", override, "image.replicas=1"])


def test_an_override_of_an_anchored_section_leaves_the_others(tmp_path: Path) -> None:
    text = WHOLE.replace("options: {", "options: &o {").replace("weight: 2", "options: *o")
    config = load_config(write(tmp_path / "run.yaml", text), ["rewards.services.one.options.dtype=float32"])
    assert [service.options["dtype"] for service in config.rewards.services[:2]] == ["float32", "bfloat16"]


def test_a_wrong_override_does_not_show_a_password(whole: Path) -> None:
    for override in ("buffer={url: 'redis://:secret@host', capcity: 3}", "buffer='redis://:secret@host'"):
        with pytest.raises(ConfigError, match=r"^override buffer=\.\.\.: buffer") as raised:
            load_config(whole, [override])
        assert "secret" not in str(raised.value)


def test_a_text_with_dollar_and_braces_stays_as_it_is(whole: Path) -> None:
    config = load_config(whole, ["policy.templates.instruction='${money} {prompt} $$ ???'"])
    assert config.policy.templates.instruction == "${money} {prompt} $$ ???"
    assert config.policy.templates.system == "costs ${money}"


def test_numbers_and_texts_in_files(tmp_path: Path, whole: Path) -> None:
    config = on_whole(tmp_path, "folder: 2026-11-26\nlearner: {optimizer: {lr: 3E-6, eps: 1e-9}}\nseed: 1_000")
    assert config.folder == "2026-11-26" and config.learner.optimizer.lr == 3e-6 and config.seed == 1000
    assert load_config(whole).learner.optimizer.lr == 1e-5
    assert on_whole(tmp_path, "folder: '1e5'").folder == "1e5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "the key a stands twice, in lines 1 and 3"),
        ("x:\n  b: {c: 1, d: 2, c: 3}", "the key c stands twice, in line 2"),
        ("x:\n  - b: 1\n    'b': 2", "the key b stands twice, in lines 2 and 3"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"own\.yaml: cannot be read as YAML: {message}$"):
        load_config(write(tmp_path / "own.yaml", text))


def test_merged_mappings_are_no_duplicates() -> None:
    assert load("a: &a {k: 1}\nb: &b {<<: *a, k: 2}\nc: {<<: *b, k: 3}")["c"] == {"k": 3}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | NUMBERS | LINE_ENDS,
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_what_is_dumped_is_loaded_again(tree: object) -> None:
    assert load(dump(tree)) == tree
