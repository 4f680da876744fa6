"""Where processes that form a group find one another: a socket that is bound before anyone is told its address."""

from __future__ import annotations

import socket
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the first of a group waits for the others."""

    host: str
    port: int


class Rendezvous:
    """The first one's listening socket, which nobody else can take once its address is told."""

    def __init__(self, host: str) -> None:
        """Bind to `host`, an address of this machine; loopback stays loopback."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.bind((host, 0))
        self._socket.listen()
        self.endpoint = Endpoint(host, self._socket.getsockname()[1])

    def detach(self) -> int:
        """Hand the socket's file descriptor over; this object is done with it."""
        return self._socket.detach()
