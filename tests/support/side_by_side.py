"""Files of tests side by side (`make test`): the longest come first, and no process is lost unnoticed."""

from __future__ import annotations

import pytest

LONGEST = (
    "test_run",
    "test_run_learns",
    "test_rehearsal",
    "test_metrics_live",
    "test_actors_semantic",
    "test_run_ends",
)
"""Files of tests/system that start first: what is left for the end is then short, and both cores have work."""

_lost: list[str] = []


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several processes, systems come before units; otherwise the order stays."""
    if hasattr(config, "workerinput"):
        items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    if item.config.rootpath / "tests" / "system" not in item.path.parents:
        return len(LONGEST) + 1
    return LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    """A process that dies between two tests, or after its last one, fails no test by itself."""
    if error:
        _lost.append(f"{node}: {error}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run that lost a process."""
    if _lost and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the processes that were lost."""
    for lost in _lost:
        terminalreporter.write_line(f"a process of the tests was lost: {lost}", red=True)
