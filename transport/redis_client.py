"""Access to Redis: the client, its name in messages, and its errors."""

from __future__ import annotations

from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from transport.errors import RedisUnavailable

SOCKET_TIMEOUT_S = 5.0
"""Seconds within which Redis answers one command, blocking reads (at most `BLOCK_S`) included."""
BLOCK_S = 1.0
"""Longest single blocking read, seconds; longer waits repeat it."""

MALFORMED = "(malformed URL)"

UNANSWERED = (redis.ConnectionError, redis.TimeoutError)
"""Errors that may pass: Redis is away, restarting or loading its file."""
REFUSED = (redis.AuthenticationError, redis.exceptions.AuthorizationError)
"""Connection errors that will not pass."""


def connect(url: str) -> redis.Redis:
    """A client for `url`, which connects at its first command. It never repeats a command by itself.

    Raises:
        RedisUnavailable: not a Redis URL. The message shows no part of it, because it might contain a password.
    """
    try:
        if shown(url) == MALFORMED:
            raise ValueError
        client = redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=30,
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # which says what it does not know of the URL's options
        return client
    except (ValueError, TypeError):
        raise RedisUnavailable(
            "not a Redis URL: expected redis://[user:password@]host:port/db (rediss:// for TLS), with special "
            "characters of the password percent-encoded"
        ) from None


def shown(url: str) -> str:
    """The URL without user, password and options, for messages."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return MALFORMED
    if "@" in parts.path:  # a password with a slash: the part that looks like host and path belongs to it
        return MALFORMED
    return f"{parts.scheme}://{host}{port}{parts.path}"


def refusal(url: str, error: Exception) -> str:
    """One sentence for an error that will not pass."""
    if isinstance(error, REFUSED) or "NOAUTH" in str(error):
        return f"Redis at {shown(url)} refused the password; correct it in the URL ({error})"
    if isinstance(error, redis.exceptions.OutOfMemoryError):
        return f"Redis at {shown(url)} is out of memory; raise its maxmemory or lower the buffer's capacity ({error})"
    if "NOGROUP" in str(error):
        return f"Redis at {shown(url)} has lost the run's keys; resume the run from its checkpoint ({error})"
    return f"Redis at {shown(url)} refused a command ({error})"
