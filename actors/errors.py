"""Errors that leave this room. Each takes one message, so that it survives a trip between processes."""

from __future__ import annotations


class ActorError(RuntimeError):
    """Base of all errors of this room."""


class PromptError(ActorError, ValueError):
    """A prompt that an engine cannot take; says why."""


class DeadlineError(ActorError, TimeoutError):
    """A call missed its deadline; names the stage, the finished part, and the seconds."""


class WeightsError(ActorError):
    """Weights that are missing, or do not fit the model; names the tensor."""


class EngineError(ActorError):
    """The engine failed and takes no more work: this process must be replaced."""
