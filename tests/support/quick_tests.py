"""Keeps the quick tests quick: those of tests/unit that are not marked slow, which `make test-fast` runs."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator

import pytest

SYSTEMS = {"ray": "Ray", "vllm": "vLLM", "headless_chromium": "a browser"}
"""Modules that no quick test may bring into its process."""


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module of tests/unit that imports a system at its top is not collected."""
    before = set(sys.modules)
    report = yield
    if isinstance(collector, pytest.Module) and is_unit(collector) and (told := brought_since(before)):
        report.outcome, report.longrepr = "failed", f"{collector.nodeid} {told}"
    return report


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest) -> Iterator[None]:
    """A quick test that imports a system while it runs fails."""
    before = set(sys.modules)
    yield
    is_quick = is_unit(request.node) and not request.node.get_closest_marker("slow")
    if is_quick and (told := brought_since(before)):
        pytest.fail(told)


def is_unit(node: pytest.Collector | pytest.Item) -> bool:
    """Whether it stands in tests/unit."""
    return node.config.rootpath / "tests" / "unit" in node.path.parents


def brought_since(before: set[str]) -> str:
    """A complaint about the systems whose modules are there and were not `before`; empty without one."""
    found = " and ".join(told for name, told in SYSTEMS.items() if name in sys.modules and name not in before)
    return f"brings {found} into its process: mark it slow, or move it to tests/system" if found else ""
