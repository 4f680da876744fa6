"""Every error that leaves transport/. Each takes one message, so that it survives a trip between processes."""

from __future__ import annotations


class TransportError(RuntimeError):
    """Base of all errors of this room."""


class WireError(TransportError):
    """Bytes that are no trajectory group, or a group that cannot be written; names the fault."""


class RedisUnavailable(TransportError):
    """Redis does not answer, or refuses us. Names the URL without its password, and what to do."""


class BufferUnavailable(RedisUnavailable):
    """The buffer's Redis went away, or refuses a command, for longer than the call's deadline."""


class BufferTimeout(TransportError):
    """The buffer stayed full, or held too few groups, for longer than the call's deadline."""


class BufferCorrupt(TransportError):
    """An entry of the buffer cannot be read or is not there; names the entry."""


class WeightTransferError(TransportError):
    """Weights that did not arrive completely; names the version, the bucket and the deadline."""


class WeightsHalfWritten(WeightTransferError):
    """An update that broke off after some weights were replaced; their engine is unusable."""
