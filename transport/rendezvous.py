"""The meeting point of processes that form a group: a socket that is bound before its address is announced."""

from __future__ import annotations

import socket
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address at which the first process of a group waits for the others."""

    host: str
    port: int


class Rendezvous:
    """The listening socket of the first process; no other process can take the announced address."""

    def __init__(self, host: str) -> None:
        """Bind to `host`, an address of this machine; loopback stays loopback."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.bind((host, 0))
        self._socket.listen()
        self.endpoint = Endpoint(host, self._socket.getsockname()[1])

    def detach(self) -> int:
        """Return the socket's file descriptor; this object no longer owns it."""
        return self._socket.detach()
