"""Small changes to the cores, by seed, each of which a unit test must notice: `make mutants [SEED=0] [COUNT=100]`.

The changes are mutmut's operators. Its own runner leaves out decorated functions and the constants of modules and
classes, and draws no sample by seed. So here a copy of the checkout gets one change at a time, in a fork of a process
that has imported torch and the rest already. The unit tests of the changed module's room run until one fails: those
that reach the changed line first, the quick ones before the slow. Outcomes are kept until a file changes, so that a
run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import coverage
import libcst as cst
import pytest
from mutmut.mutation import mutators

CORES = """
    policy/*.py
    transport/config.py transport/trajectory.py transport/wire.py
    actors/batch_loop.py actors/cached_llama.py actors/fused_linear.py actors/requests.py actors/sampler.py
    learner/advantages.py learner/batching.py learner/config.py
    learner/mfu.py learner/objective.py learner/schedule.py
    rewards/base.py rewards/ensemble.py rewards/scoring/*.py rewards/models/pixels.py rewards/models/yes_no.py
    cluster/prompt_order.py cluster/monitor/step_statistics.py
    recipe/config.py recipe/memory.py recipe/resources.py
    evaluation/held_out.py
""".split()
"""The modules of plain torch or less, which need no Ray, vLLM or DeepSpeed to be tested."""
MAKERS = ("policy/tiny.py",)
"""Makes random models for tests and rehearsals, of sizes that could as well be others."""

LEFT_OUT = {
    mutators.operator_string, mutators.operator_assignment, mutators.operator_lambda, mutators.operator_arg_removal,
}  # fmt: skip
"""mutmut's operators that are not used: words, and values that are None or left out, which mostly end in an error."""
OPERATORS = [(kind, change) for kind, change in mutators.mutation_operators if change not in LEFT_OUT]
SKIPPED = (cst.Annotation, cst.Decorator, cst.Raise, cst.Assert, cst.Import, cst.ImportFrom)
"""What is not changed: types, error messages, and what holds in any case; nor are arguments by these names:"""
SKIPPED_ARGUMENTS = ("strict", "indent")


@dataclass(frozen=True)
class Mutant:
    """A change: the module's `path` under the root, the line, its new text, and the difference."""

    path: str
    line: int
    code: str
    diff: str

    @property
    def rooms(self) -> tuple[str, ...]:
        """The rooms whose unit tests must notice it: its own, and for a key of the run config the recipe's."""
        own = self.path.partition("/")[0]
        return (own, "recipe") if self.path.endswith("/config.py") and own != "recipe" else (own,)


class _Sites(cst.CSTVisitor):
    """Collects (node, what may stand in its place) of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[cst.CSTNode, cst.CSTNode]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        """Notes the changes of a node; what is skipped is not entered."""
        if isinstance(node, SKIPPED):
            return False
        if isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value in SKIPPED_ARGUMENTS:
            return False
        for kind, changes in OPERATORS:
            if isinstance(node, kind):
                self.found += [(node, new) for new in changes(node)]
        return True


def sample(root: Path, modules: Iterable[str], seed: int, count: int) -> list[Mutant]:
    """`count` changes of all that the modules (patterns under `root`) admit; a larger count adds to a smaller."""
    paths = sorted({path for pattern in modules for path in root.glob(pattern)} - {root / path for path in MAKERS})
    sites = []
    for path in paths:
        module, visitor = cst.parse_module(path.read_text()), _Sites()
        module.visit(visitor)
        sites += [(path.relative_to(root), module, *site) for site in visitor.found]
    random.Random(seed).shuffle(sites)
    mutants: dict[tuple[str, str], Mutant] = {}
    for path, module, old, new in sites:
        if len(mutants) == count:
            break
        mutant = _mutant(str(path), module.code, module.deep_replace(old, new).code)  # type: ignore[union-attr]
        if mutant is not None:
            mutants.setdefault((mutant.path, mutant.code), mutant)
    return list(mutants.values())


def _mutant(path: str, before: str, after: str) -> Mutant | None:
    """None for what Python reads as before or not at all."""
    try:
        if ast.dump(ast.parse(before)) == ast.dump(ast.parse(after)):
            return None
    except SyntaxError:
        return None
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), path, path, lineterm="", n=0))
    line = int(lines[2].split()[1].lstrip("-").partition(",")[0])
    return Mutant(path, line, after, "\n".join(lines[3:]))


@dataclass
class Baseline:
    """What a room's tests do without a change: seconds in all and each, who reaches a line, what is imported."""

    seconds: float
    tests: dict[str, float]
    reached: dict[str, dict[str, list[str]]]
    imported: list[str]


def order(mutant: Mutant, baselines: Iterable[Baseline]) -> dict[str, tuple[bool, float]]:
    """The tests that may notice the change, each with its sort key.

    Those are the tests that run any line of the module; all tests, where the changed line runs on import or in a
    fixture, whose results others share.
    """
    changed = sum(line.startswith("-") for line in mutant.diff.splitlines())
    lines = [str(line) for line in range(mutant.line, mutant.line + max(1, changed))]
    keys: dict[str, tuple[bool, float]] = {}
    for baseline in baselines:
        reached = baseline.reached.get(mutant.path, {})
        first = {test for line in lines for test in reached.get(line, [])}
        near = {test for tests in reached.values() for test in tests}
        some = near if first and "" not in first else baseline.tests
        keys |= {test: (test not in first, baseline.tests[test]) for test in some if test in baseline.tests}
    return keys


class _Watch:
    """A pytest plugin that takes the baseline of a room."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tests: dict[str, float] = {}
        self._lines = coverage.Coverage(data_file=None, source=[str(root)], config_file=False)
        self._lines.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        self._lines.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self._lines.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.tests[report.nodeid] = self.tests.get(report.nodeid, 0.0) + report.duration

    def reached(self) -> dict[str, dict[str, list[str]]]:
        """Module to line to tests; "" stands for an import or a fixture."""
        self._lines.stop()
        data = self._lines.get_data()
        found = {}
        for file in data.measured_files():
            lines = data.contexts_by_lineno(file)
            found[str(Path(file).relative_to(self.root))] = {str(line): tests for line, tests in lines.items()}
        return found


class _InOrder:
    """A pytest plugin that runs the tests that have a key, in the order of their keys."""

    def __init__(self, keys: dict[str, tuple[bool, float]]) -> None:
        self.keys = keys

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((one for one in items if one.nodeid in self.keys), key=lambda one: self.keys[one.nodeid])


class Copy:
    """A copy of a checkout's files, in which one module at a time is another."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = folder
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
        for name in filter(None, names):
            if (root / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / name, folder / name)

    def digest(self, rooms: Iterable[str]) -> str:
        """Of all that the outcome of a change depends on, which the tests of `rooms` are to notice."""
        sources = [path for path in self.root.rglob("*.py") if not path.is_relative_to(self.root / "tests")]
        shared = [*self.root.glob("tests/*.py"), *self.root.glob("tests/support/*.py")]
        tests = [path for room in rooms for path in self.root.glob(f"tests/unit/{room}/**/*.py")]
        found = hashlib.sha256()
        for path in sorted({*sources, *shared, *tests}):
            found.update(str(path.relative_to(self.root)).encode() + b"\0" + path.read_bytes() + b"\0")
        return found.hexdigest()

    def baseline(self, room: str) -> Baseline:
        """Run the room's tests unchanged; SystemExit if they fail or are not there."""
        if not (self.root / "tests/unit" / room).is_dir():
            raise SystemExit(f"tests/unit/{room} is not there, so no test can notice a change of {room}/")
        out = self.root / f".baseline-{room}.json"

        def measure() -> int:
            watch, start = _Watch(self.root), time.monotonic()
            code = self._pytest([room], watch)
            imported = [name for name in sys.modules if not self._is_ours(name)]
            kept = [time.monotonic() - start, watch.tests, watch.reached(), imported]
            out.write_text(json.dumps(kept))
            return code

        code = self._forked(measure, 1800)
        if code != 0:
            said = (self.root / ".said").read_text()
            raise SystemExit(f"tests/unit/{room} must pass before changes are tried; it ended with {code}:\n{said}")
        return Baseline(*json.loads(out.read_text()))

    def outcome(self, mutant: Mutant, baselines: list[Baseline], slack: float) -> str:
        """killed, survived, or stuck: over twice the time of the unchanged rooms, and `slack` seconds."""
        path, keys = self.root / mutant.path, order(mutant, baselines)
        seconds = 2 * sum(baseline.seconds for baseline in baselines) + slack
        before = path.read_text()
        path.write_text(mutant.code)
        try:
            code = self._forked(lambda: self._pytest(mutant.rooms, _InOrder(keys), "-x"), seconds)
        finally:
            path.write_text(before)
        survived = code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        return "stuck" if code is None else "survived" if survived else "killed"

    def _pytest(self, rooms: Iterable[str], plugin: object, *options: str) -> int:
        quiet = ("-q", "--tb=short", "--durations=0", "-p", "no:cacheprovider")
        return int(pytest.main([*(f"tests/unit/{room}" for room in rooms), *quiet, *options], plugins=[plugin]))

    def _is_ours(self, name: str) -> bool:
        file = getattr(sys.modules[name], "__file__", None) or ""
        return name == "__main__" or file.startswith(str(self.root))

    def _forked(self, task: Callable[[], int], seconds: float) -> int | None:
        """The exit status of a task in a process of its own; None if it takes longer."""

        def run() -> None:
            os.setsid()
            said = os.open(self.root / ".said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, 1)
            os.dup2(said, 2)
            os.chdir(self.root)
            os.environ["PYTHONPATH"] = str(self.root)
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            sys.dont_write_bytecode = True
            code = 1
            with suppress(BaseException):
                code = task()
            sys.stdout.flush()
            os._exit(code)

        process = multiprocessing.get_context("fork").Process(target=run)
        process.start()
        process.join(seconds)
        code = process.exitcode
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
        return code


def try_all(root: Path, mutants: list[Mutant], kept: Path, slack: float) -> dict[str, list[Mutant]]:
    """The mutants by outcome. `kept` holds earlier outcomes, and gets each new one at once."""
    known = dict(json.loads(line) for line in kept.read_text().splitlines()) if kept.exists() else {}
    kept.parent.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, list[Mutant]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Copy(root, Path(folder))
        digest, baseline = cache(copy.digest), cache(lambda room: _ready(copy, room))
        for done, mutant in enumerate(sorted(mutants, key=lambda one: one.rooms), start=1):
            start = time.monotonic()
            name = hashlib.sha256(f"{digest(mutant.rooms)}\0{mutant.path}\0{mutant.code}".encode()).hexdigest()
            if name not in known:
                known[name] = copy.outcome(mutant, [baseline(room) for room in mutant.rooms], slack)
                with kept.open("a") as file:
                    file.write(json.dumps([name, known[name]]) + "\n")
            outcomes[known[name]].append(mutant)
            seconds = time.monotonic() - start
            print(f"{done}/{len(mutants)} {known[name]} {mutant.path}:{mutant.line} ({seconds:.0f} s)", flush=True)
            if known[name] == "survived":
                print(mutant.diff, flush=True)
    return outcomes


def _ready(copy: Copy, room: str) -> Baseline:
    """The room's baseline; what its tests import from elsewhere is imported here, for all forks to come."""
    baseline = copy.baseline(room)
    for name in baseline.imported:
        with suppress(Exception):
            import_module(name)
    return baseline


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=CORES, help="patterns under the root; the cores unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--slack", type=float, default=60.0, help="seconds beyond twice the room's own time")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[2])
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    start = time.monotonic()
    mutants = sample(asked.root, asked.modules, asked.seed, asked.count)
    outcomes = try_all(asked.root, mutants, asked.root / "build/mutants.jsonl", asked.slack)
    print("\nNoticed by no test:" if outcomes["survived"] else "\nEach was noticed.")
    for mutant in sorted(outcomes["survived"], key=lambda m: (m.path, m.line)):
        print(f"{mutant.path}:{mutant.line}\n{mutant.diff}")
    killed, survived, stuck = (len(outcomes[name]) for name in ("killed", "survived", "stuck"))
    minutes = (time.monotonic() - start) / 60
    print(f"\nseed {asked.seed}, {len(mutants)} changes, {minutes:.1f} minutes:", end=" ")
    print(f"{killed} killed, {survived} survived, {stuck} stuck")


if __name__ == "__main__":
    main()
