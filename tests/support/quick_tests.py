"""Keeps the quick tests quick: those of tests/unit that are not marked slow, which `make test-fast` runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from paths import ROOT

SYSTEMS = {"ray": "Ray", "vllm": "vLLM", "headless_chromium": "a browser"}
"""Modules that no quick test may bring into its process."""

UNIT = ROOT / "tests" / "unit"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """A module of tests/unit that imports a system at its top is not collected."""
    before = set(sys.modules)
    report = yield
    if isinstance(collector, pytest.Module) and UNIT in collector.path.parents and (told := brought_since(before)):
        report.outcome, report.longrepr = "failed", f"{collector.nodeid} {told}"
    return report


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest) -> Iterator[None]:
    """A quick test that imports a system while it runs fails."""
    before = set(sys.modules)
    yield
    of_a_system = UNIT not in request.path.parents or request.node.get_closest_marker("slow")
    if not of_a_system and (told := brought_since(before)):
        pytest.fail(told)


def brought_since(before: set[str]) -> str:
    """A complaint about the systems whose modules are there and were not `before`; empty without one."""
    found = " and ".join(told for name, told in SYSTEMS.items() if name in sys.modules and name not in before)
    return f"brings {found} into its process: mark it slow, or move it to tests/system" if found else ""
