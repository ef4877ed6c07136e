"""Reads what a client says in PostgreSQL's frontend protocol, from the bytes that pass."""

from __future__ import annotations

import struct

_CANCEL, _TLS, _GSS = 80877102, 80877103, 80877104


class FrontendReader:
    """One connection's client messages. Feed it bytes in any pieces; it keeps what is not complete yet."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        """The types of the messages after startup: b"Q" a simple query, b"P" a Parse, b"X" the end."""
        self.statements: list[str] = []
        """The SQL of each simple query and each Parse."""
        self.named: list[str] = []
        """The names of the prepared statements that have one."""
        self.startup: dict[str, str] | None = None
        """The parameters of the startup packet."""
        self.is_cancel = False
        self.asked_for_tls = False
        self._rest = bytearray()
        self._opaque = False

    def feed(self, data: bytes) -> None:
        self._rest += data
        while not self._opaque and (self._read_startup() if self.startup is None else self._read_message()):
            pass
        if self._opaque:
            self._rest.clear()

    def tls_granted(self) -> None:
        """From here on the bytes are ciphertext."""
        self._opaque = True

    def _read_startup(self) -> bool:
        if len(self._rest) < 8:
            return False
        length, code = struct.unpack_from("!II", self._rest)
        if length < 8:
            self._opaque = True  # Not PostgreSQL's protocol.
            return False
        if len(self._rest) < length:
            return False
        body = bytes(self._rest[8:length])
        del self._rest[:length]
        if code == _CANCEL:
            self.is_cancel = self._opaque = True
        elif code in (_TLS, _GSS):
            self.asked_for_tls = code == _TLS
        else:
            words = [word.decode() for word in body.split(b"\0")]
            self.startup = dict(zip(words[::2], words[1::2], strict=False))
            self.startup.pop("", None)
        return True

    def _read_message(self) -> bool:
        if len(self._rest) < 5:
            return False
        (length,) = struct.unpack_from("!I", self._rest, 1)
        if len(self._rest) < 1 + length:
            return False
        kind, body = bytes(self._rest[:1]), bytes(self._rest[5 : 1 + length])
        del self._rest[: 1 + length]
        self.messages.append(kind)
        if kind == b"Q":
            self.statements.append(body.split(b"\0")[0].decode())
        elif kind == b"P":
            name, statement = body.split(b"\0")[:2]
            self.statements.append(statement.decode())
            if name:
                self.named.append(name.decode())
        return True
