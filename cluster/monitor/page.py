"""The run's page for Prometheus: /metrics, and /targets (HTTP service discovery), which lists the other pages."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from recipe.errors import RunError

TargetGroup = dict[str, Any]
"""`{"targets": ["host:port"], "labels": {...}}`, as Prometheus reads it from files and over HTTP."""


class MetricsPage:
    """Serves a registry at `address`; use `close` to stop."""

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, targets: Callable[[], list[TargetGroup]]
    ) -> None:
        """
        Raises:
            RunError: nothing can listen there.
        """

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                if path == "/metrics":
                    encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                    self._answer(content_type, encode(registry))
                elif path == "/targets":
                    self._answer("application/json", json.dumps(targets()).encode())
                else:
                    self.send_error(404, "this page has /metrics and /targets")

            def _answer(self, content_type: str, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing for a scrape."""

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        try:
            self._server = Server((host, port), Handler)
        except OSError as error:
            raise RunError(f"metrics.port: cannot listen on {host}:{port}: {error.strerror}") from error
        self.port = int(self._server.server_address[1])
        self.address = f"http://{netloc(host, self.port)}/metrics"
        threading.Thread(target=self._server.serve_forever, daemon=True, name="metrics").start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def netloc(host: str, port: int) -> str:
    """ "host:port", an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def target_groups(run: str, own: str, nodes: list[str]) -> list[TargetGroup]:
    """The run's own page at `own`, and each machine's page of Ray's metrics at `nodes` (all "host:port")."""
    groups: list[TargetGroup] = [{"targets": [own], "labels": {"job": "bicot", "__meta_bicot_run": run}}]
    if nodes:
        groups.append({"targets": nodes, "labels": {"job": "ray", "__meta_bicot_run": run}})
    return groups
