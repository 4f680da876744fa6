"""Errors that end a run, each with a sentence for the person who started it."""

from __future__ import annotations


class ConfigError(ValueError):
    """A run config that cannot be used; the message names the file and the key."""


class NoInstruction(ConfigError):
    """The file of `policy.templates.instruction` is not there; the rest of the config may be right."""


class RunError(RuntimeError):
    """A run cannot start or go on; the message is one sentence that says what to do."""


class StageError(RunError):
    """A stage of the loop failed or missed its deadline; names the stage, the work, how long, and the process."""

    def __init__(self, stage: str, work: str, seconds: float, reason: str, log_tail: str = "") -> None:
        super().__init__(f"{stage}: {work} failed after {seconds:.1f} s: {reason}")
        self.stage = stage
        self.log_tail = log_tail


def log_tail(path: str, lines: int = 15) -> str:
    """The last lines of a process's log, or why it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return "".join(file.readlines()[-lines:]).rstrip()
    except OSError as error:
        return f"({path} cannot be read: {error})"


def first_cause(error: BaseException) -> BaseException:
    """The first error of a task group's exception group; any other error is returned unchanged."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
