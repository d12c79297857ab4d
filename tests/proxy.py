"""A PostgreSQL server behind a line that can be cut: a socket that passes on what it gets."""

import contextlib
import shutil
import socket
import threading
from pathlib import Path
from tempfile import mkdtemp
from urllib.parse import quote, unquote

PORT = ".s.PGSQL.5432"


class Line:
    """A line to the server of a URL; `url` leads through it until `cut`, and again after `mend`."""

    def __init__(self, url: str) -> None:
        base, _, host = url.partition("?host=")
        self._server = str(Path(unquote(host)) / PORT)
        self._folder = Path(mkdtemp(prefix="xsweep-line-", dir="/tmp"))
        self.url = f"{base}?host={quote(str(self._folder), safe='')}"
        self.passed = 0
        """Connections that were let through."""
        self.refused = 0
        self._ends: list[socket.socket] = []
        self._whole = threading.Event()
        self._whole.set()
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(self._folder / PORT))
        self._door.listen()
        threading.Thread(target=self._open_door, daemon=True).start()

    def cut(self) -> None:
        """Break off what is under way, and let nothing through."""
        self._whole.clear()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._ends.clear()

    def mend(self) -> None:
        """Let new connections through."""
        self._whole.set()

    def close(self) -> None:
        self.cut()
        self._door.close()
        shutil.rmtree(self._folder)

    def _open_door(self) -> None:
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:
                return
            if not self._whole.is_set():
                client.close()
                self.refused += 1
                continue
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._server)
            except OSError:  # as the server itself would: it is gone
                client.close()
                continue
            self.passed += 1
            self._ends += [client, server]
            for ends in ((client, server), (server, client)):
                threading.Thread(target=_pass_on, args=ends, daemon=True).start()


def _pass_on(here: socket.socket, there: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := here.recv(1 << 16):
            there.sendall(data)
    for end in (here, there):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
