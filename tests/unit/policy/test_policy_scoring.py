"""Scoring on packed lines: exactly the log-probs, entropies and gradients of rows that are run one by one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from policy.guidance import entropy, guided_logits, log_distribution, token_logprobs
from policy.janus import Policy
from policy.packing import PackedRows, PrefixTree
from policy.scoring import Distribution, Recompute, Scorer, ScoreRows, SegmentRows, _ChunkedScores, _Line
from policy.tokens import unconditional


@pytest.mark.parametrize("distribution", ["conditional", "guided"])
@pytest.mark.parametrize("budget", [2**25, 1200, 64])
@pytest.mark.parametrize("recompute", ["nothing", "selective", "layers"])
def test_scores_equal_plain_forwards(
    tiny_policy: Policy, distribution: Distribution, budget: int, recompute: Recompute
) -> None:
    """Rows of any length, chunked or not, score as each would alone with full logits; so do the gradients."""
    model, layout = tiny_policy.model, tiny_policy.layout
    prompts = [torch.tensor(tiny_policy.prompts.image_prompt(p, "")) for p in ("a red circle", "two blue square")]
    prompts.append(torch.tensor(tiny_policy.prompts.image_prompt("a circle", "red circle left of blue square")))
    prompts.append(prompts[0])  # a group's members share prompts, whole or in part
    images = list(torch.randint(layout.image_vocab, (4, layout.image_tokens)))
    texts = [torch.randint(layout.text_vocab, (n,)) for n in (3, 1, 6, 3)]
    rows = ScoreRows(SegmentRows(prompts, texts, 0.9), SegmentRows(prompts, images, 1.1, 3.0))

    scores = Scorer(model, layout, budget, recompute)(rows, distribution)
    assert scores.text is not None and scores.image is not None
    (scores.text.logprobs.sum() + scores.image.logprobs.sum()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    expected_text, expected_image = [], []
    for prompt, text, image in zip(prompts, texts, images, strict=True):
        logits = model(input_ids=torch.cat([prompt, text])[None]).logits[0, len(prompt) - 1 : -1]
        expected_text.append(torch.log_softmax(logits / 0.9, -1)[torch.arange(len(text)), text])
        heads = []
        for ids in (prompt, unconditional(prompt, layout)):
            parts = [
                model.get_input_embeddings()(ids),
                model.prepare_embeddings_for_image_generation(image[:-1]),
            ]
            states = model.model.language_model(inputs_embeds=torch.cat(parts)[None]).last_hidden_state
            heads.append(model.model.generation_head(states[0, len(prompt) - 1 :]))
        logits = heads[1] + 3.0 * (heads[0] - heads[1]) if distribution == "guided" else heads[0]
        expected_image.append(torch.log_softmax(logits / 1.1, -1)[torch.arange(len(image)), image])
    (torch.cat(expected_text).sum() + torch.cat(expected_image).sum()).backward()

    assert torch.allclose(scores.text.logprobs, torch.cat(expected_text), atol=1e-5)
    assert torch.allclose(scores.image.logprobs, torch.cat(expected_image), atol=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(gradients[name], parameter.grad, rtol=1e-3, atol=2e-3), name
    model.zero_grad()


def test_shared_positions_are_computed_once(tiny_policy: Policy) -> None:
    layout = tiny_policy.layout
    asked = torch.tensor(tiny_policy.prompts.semantic_prompt("a red circle"))
    shown = [torch.tensor(tiny_policy.prompts.image_prompt("a red circle", cot)) for cot in ("red left", "blue left")]
    text = SegmentRows([asked] * 3, [torch.arange(n) for n in (4, 2, 5)])
    images = [torch.arange(layout.image_tokens)] * 2
    line = _Line(ScoreRows(text, SegmentRows(shown, images, 1.0, 3.0)), "guided", layout)
    prompts = [*[asked] * 3, *shown, *(unconditional(prompt, layout) for prompt in shown)]
    prefixes = {tuple(prompt[:end].tolist()) for prompt in prompts for end in range(1, len(prompt) + 1)}
    assert len(line.positions) == len(prefixes) + 3 + 1 + 4 + 4 * (layout.image_tokens - 1)
    assert len(prefixes) < sum(map(len, prompts)) - 2 * len(asked)
    for path, prompt in zip(line.paths, prompts, strict=True):
        assert torch.equal(line.text_ids[path[: len(prompt)]], prompt)
        assert torch.equal(line.positions[path], torch.arange(len(path)))


def test_rows_lead_through_the_line_and_back() -> None:
    paths = [torch.tensor(path) for path in ([0, 1, 2, 3], [0, 1, 4], [0, 5, 6, 7], [0, 1, 4])]
    packed = PackedRows.of(paths, torch.device("cpu"))
    assert packed.bunches == ((2, 3), (2, 4)) and packed.longest == 4 and packed.ends.tolist() == [0, 3, 6, 10, 14]
    assert torch.equal(packed.path[packed.home], torch.arange(8))
    assert sorted([*packed.home.tolist(), *packed.copies.tolist()]) == list(range(14))


def test_a_prefix_tree_knows_pasts_from_tokens() -> None:
    tree = PrefixTree()
    assert tree.add([5, 6, 7]) == [0, 1, 2] and tree.add([5, 6, 8, 7]) == [0, 1, 3, 4] and tree.add([6]) == [5]
    assert len(tree) == 6 and tree.tokens() == [5, 6, 7, 8, 7, 6]


@pytest.mark.parametrize("scale", [None, 4.0])
@pytest.mark.parametrize("size", [2, 3, 100])
def test_chunked_scores_have_the_gradient_of_the_equations(scale: float | None, size: int) -> None:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True)

    ids, weight, bias = torch.tensor([0, 4, 4, 1, 2, 3, 0]), draw(5, 3), draw(5)
    states = [draw(7, 3) for _ in range(1 if scale is None else 2)]

    def score(weight: Tensor, bias: Tensor, *states: Tensor) -> Tensor:
        return _ChunkedScores.apply(ids, 0.8, scale, size, weight, bias, *states)[0]

    assert torch.autograd.gradcheck(score, (weight, bias, *states))
    logits = [torch.nn.functional.linear(s, weight, bias) for s in states]
    log_probs = log_distribution(logits[0] if scale is None else guided_logits(*logits, scale), 0.8)
    logprobs, spread = _ChunkedScores.apply(ids, 0.8, scale, size, weight, bias, *states)
    assert torch.allclose(logprobs, token_logprobs(log_probs, ids)) and torch.allclose(spread, entropy(log_probs))
    assert not spread.requires_grad


def test_other_callers_find_the_attention_that_they_had(tiny_policy: Policy) -> None:
    model = copy.deepcopy(tiny_policy.model)
    model.model.language_model.config._attn_implementation = "sdpa"
    ids = torch.randint(8, tiny_policy.layout.text_vocab, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    before = model(input_ids=ids, attention_mask=mask).logits
    Scorer(model, tiny_policy.layout)
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)
