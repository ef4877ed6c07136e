"""A loopback port that stays ours while nobody listens on it."""

from __future__ import annotations

import random
import socket

LOOPBACK = "127.0.0.1"

_choose = random.SystemRandom()


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens just now.

    Below the ranges from which Linux and macOS take the ports of outgoing connections: while a server is down,
    no client may be given its port, nor connect to itself.
    """
    for _ in range(100):
        port = _choose.randrange(20_000, 32_000)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise RuntimeError("No free port was found between 20000 and 32000 on 127.0.0.1.")
