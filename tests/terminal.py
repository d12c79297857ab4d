"""A program on a real pseudo terminal, and the screen that a user sees."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from pathlib import Path

CODES = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\r|\n|[^\x1b\r\n]")


class Screen:
    """The lines of a terminal: those that have scrolled out, then those that are seen."""

    def __init__(self, columns: int, height: int) -> None:
        self.columns, self.height = columns, height
        self.lines = [""]
        self.row = self.column = 0

    def write(self, text: str) -> None:
        """Obey what a program prints: text, line ends, cursor up, erased lines."""
        for code in CODES.finditer(text):
            given, letter = code.group(1), code.group(2)
            if letter == "A":
                top = max(0, len(self.lines) - self.height)
                self.row = max(top, self.row - int(given or 1))
            elif letter == "K":
                self.lines[self.row] = ""
            elif code.group() == "\r":
                self.column = 0
            elif code.group() == "\n":
                self._line_feed()
            elif not letter:
                if self.column == self.columns:
                    self._line_feed()
                    self.column = 0
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + code.group() + line[self.column + 1 :]
                self.column += 1

    def _line_feed(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")

    def seen(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines[-self.height :])

    def all(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines)


class Terminal:
    """`Terminal(80, 24).start(...)`: a Python program whose three streams are a terminal."""

    def __init__(self, columns: int, height: int) -> None:
        self.screen = Screen(columns, height)
        self._ours, self._theirs = pty.openpty()
        size = struct.pack("HHHH", height, columns, 0, 0)
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, size)

    def start(self, *arguments: str, folder: Path, **environment: str) -> subprocess.Popen[bytes]:
        kept: Mapping[str, str] = {
            key: value
            for key, value in os.environ.items()
            if key not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
        }
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env={**kept, "TERM": "xterm-256color", **environment},
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
        )
        os.close(self._theirs)
        return process

    def read(self) -> bool:
        """Show what the program has printed since; False once it has ended."""
        try:
            printed = os.read(self._ours, 65_536)
        except OSError:  # the other side is closed
            os.close(self._ours)
            return False
        self._rest = getattr(self, "_rest", b"") + printed
        text = self._rest.decode(errors="ignore")
        whole = re.sub(r"\x1b(\[[0-9;?]*)?$", "", text)
        self._rest = self._rest[len(whole.encode()) :]
        self.screen.write(whole)
        return True
