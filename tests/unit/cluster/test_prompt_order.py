"""The prompt order: every prompt once an epoch, by the seed alone."""

from __future__ import annotations

from cluster.prompt_order import PromptOrder
from policy.prompts import PromptRecord

RECORDS = [PromptRecord(prompt=name, task_type="object", nouns=(name,)) for name in "abcde"]


def names(order: PromptOrder, indices: range) -> str:
    return "".join(order[index].prompt.prompt for index in indices)


def test_without_shuffling_it_is_the_files_order() -> None:
    order = PromptOrder(RECORDS, seed=3, shuffle=False)
    assert names(order, range(12)) == "abcdeabcdeab"
    assert [(order[index].index, order[index].visit) for index in (0, 4, 5, 11)] == [(0, 0), (4, 0), (5, 1), (11, 2)]
    assert order[11].group_id == f"00000011-{RECORDS[1].id}-2"


def test_every_epoch_has_an_order_of_its_own() -> None:
    epochs = [names(PromptOrder(RECORDS, 3, True), range(5 * epoch, 5 * epoch + 5)) for epoch in range(8)]
    assert all(sorted(epoch) == sorted("abcde") for epoch in epochs) and len(set(epochs)) > 4
    assert names(PromptOrder(RECORDS, 4, True), range(40)) != "".join(epochs)
    backwards = PromptOrder(RECORDS, 3, True)
    assert "".join(backwards[index].prompt.prompt for index in reversed(range(40))) == "".join(epochs)[::-1]


def test_the_order_of_a_seed_never_changes() -> None:
    """A run that was begun goes on under a later release: these are written out once and for all."""
    assert names(PromptOrder(RECORDS, 7, True), range(15)) == "bedaccdebaaebdc"
