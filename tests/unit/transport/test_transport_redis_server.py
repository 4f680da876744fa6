"""A run's own redis-server: private, durable, and gone with the process that started it."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from transport.errors import RedisUnavailable
from transport.redis_client import shown
from transport.redis_server import check_redis, start_server


def running(pid: int) -> bool:
    """Whether the process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_within(pid: int, seconds: float) -> bool:
    ends_at = time.monotonic() + seconds
    while running(pid) and time.monotonic() < ends_at:
        time.sleep(0.02)
    return not running(pid)


def test_it_is_private(tmp_path: Path) -> None:
    with start_server(tmp_path / "a folder é %@") as server:
        check_redis(server.url)
        path = server.folder / "redis.sock"
        assert stat.S_ISSOCK(path.stat().st_mode) and stat.S_IMODE(path.stat().st_mode) == 0o700
        assert shown(server.url) == server.url
        assert redis.Redis.from_url(server.url).config_get("port") == {"port": "0"}
    assert not running(server.pid) and not path.exists()


def test_a_folder_too_deep_for_a_socket(tmp_path: Path) -> None:
    """107 bytes are the kernel's limit: the socket then lies in a folder of its own, the data where they belong."""
    folder = tmp_path / ("deep" * 30)
    with start_server(folder) as server:
        redis.Redis.from_url(server.url).set("key", "value")
        path = Path(server.url.removeprefix("unix://"))
        assert path.is_socket() and folder not in path.parents
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.parent.exists()
    with start_server(folder) as again:
        assert redis.Redis.from_url(again.url).get("key") == b"value"


def test_a_second_start_in_its_folder_holds_the_same_data_at_the_same_address(tmp_path: Path) -> None:
    with start_server(tmp_path) as first:
        redis.Redis.from_url(first.url).set("key", "value")
    with start_server(tmp_path) as second:
        assert redis.Redis.from_url(second.url).get("key") == b"value"
        assert second.url == first.url
        os.kill(second.pid, signal.SIGKILL)
        with start_server(tmp_path) as third:
            assert redis.Redis.from_url(third.url).get("key") == b"value"
        assert not second.alive()


def test_two_servers_never_share_a_folder(tmp_path: Path) -> None:
    with (
        start_server(tmp_path),
        pytest.raises(RedisUnavailable, match="another redis-server still runs in"),
    ):
        start_server(tmp_path, deadline_s=0.2)


def test_it_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from transport.redis_server import start_server\n"
        "print(start_server(sys.argv[1]).pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert running(pid)
    parent.kill()
    parent.wait(30)
    assert gone_within(pid, 30)


def test_it_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(start_server, tmp_path).result(30)
    time.sleep(0.2)
    assert server.alive()
    server.close()


def test_check_says_what_is_wrong_in_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(
            RedisUnavailable, match=rf"redis://127.0.0.1:{port}/0 did not answer within 0.2 s"
        ) as caught:
            check_redis(f"redis://:secret@127.0.0.1:{port}/0", 0.2)
        assert time.monotonic() - started < 20
        assert "secret" not in str(caught.value)
    with pytest.raises(RedisUnavailable, match="not a Redis URL"):
        check_redis("http://example.org")
    with start_server(tmp_path) as server:
        redis.Redis.from_url(server.url).config_set("requirepass", "right")
        with pytest.raises(RedisUnavailable, match="refused the password") as caught:
            check_redis(server.url.replace("unix://", "unix://:wr0ng@"))
        assert "wr0ng" not in str(caught.value)
        check_redis(server.url.replace("unix://", "unix://:right@"))


def test_an_option_that_a_connection_does_not_know_is_no_redis_url() -> None:
    with pytest.raises(RedisUnavailable, match="not a Redis URL") as caught:
        check_redis("redis://:secret@127.0.0.1:1/0?foo=1", 0.1)
    assert "secret" not in str(caught.value)


def test_a_url_is_shown_without_its_password() -> None:
    assert shown("rediss://user:pass@host:6380/2?password=pass") == "rediss://host:6380/2"
    for broken in ("redis://:a/b@host:1", "redis://:12/3@host:1"):
        assert shown(broken) == "(malformed URL)"
        with pytest.raises(RedisUnavailable, match="percent-encoded"):
            check_redis(broken)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: folder.touch(),
        lambda folder: folder.symlink_to(folder),
        lambda folder: (folder / "redis.sock").mkdir(parents=True),
        lambda folder: (folder / "redis.log").mkdir(parents=True),
        lambda folder: (folder / "redis.lock").mkdir(parents=True),
    ],
)
def test_a_folder_that_it_cannot_use_is_told(spoil: Callable[[Path], object], tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    spoil(folder)
    with pytest.raises(RedisUnavailable, match=f"redis-server cannot start in {folder}: .*{folder}"):
        start_server(folder)


def test_a_folder_without_a_possible_name_is_told() -> None:
    with pytest.raises(RedisUnavailable, match="cannot start in "):
        start_server("a\0b")
