"""A real Prometheus beside a run, under the project's config and rules: scrapes what the run's page tells it to."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Self

import yaml
from paths import ROOT

_INSTALLED = ROOT / ".venv" / "prometheus" / "usr" / "bin"
"""Where deploy/prometheus/install.sh puts it."""


def binary(name: str) -> str | None:
    """The path of `prometheus` or `promtool`; None where it is not installed."""
    return shutil.which(name, path=str(_INSTALLED)) or shutil.which(name)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Prometheus:
    """A Prometheus on loopback with its data in `folder`; `targets` is the run's page of targets."""

    def __init__(self, folder: Path, targets: str) -> None:
        program = binary("prometheus")
        assert program
        folder.mkdir(parents=True, exist_ok=True)
        self.url = f"http://127.0.0.1:{free_port()}"
        config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(ROOT / "deploy/prometheus" / pattern) for pattern in config["rule_files"]]
        config["scrape_configs"][0]["http_sd_configs"] = [{"url": targets, "refresh_interval": "1s"}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._log = (folder / "prometheus.log").open("w")
        self._process = subprocess.Popen(
            [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address={self.url.removeprefix('http://')}"],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip
        self._wait()

    def _wait(self, deadline_s: float = 30.0) -> None:
        end = time.monotonic() + deadline_s
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/-/ready", timeout=2).close()
                return
            except OSError:
                assert time.monotonic() < end and self._process.poll() is None, Path(self._log.name).read_text()
                time.sleep(0.1)

    def get(self, path: str, **query: str) -> Any:
        """The `data` of an answer of its HTTP API."""
        with urllib.request.urlopen(
            f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=30
        ) as answer:
            return json.load(answer)["data"]

    def series(self, query: str, start: float, end: float, step: float = 1.0) -> list[dict[str, Any]]:
        """Series of a range query: `metric` (labels) and `values` ([time, text])."""
        found: list[dict[str, Any]] = self.get(
            "query_range", query=query, start=f"{start:.3f}", end=f"{end:.3f}", step=f"{step:g}"
        )["result"]
        return found

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
