"""Errors of a policy's files."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the folder or file and what to do."""
