"""`palmette serve` as a process of its own, for as long as a block lasts."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

START_SECONDS = 120.0  # to load the model on a slow machine
STOP_SECONDS = 40.0  # to drain
MODEL = "smollm2"


class CannotStart(Exception):
    """The server did not come up; its last words are the message."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server answers, and to which keys."""

    url: str
    key: str = ""
    admin_key: str = ""

    def environment(self) -> dict[str, str]:
        """The variables by which a client's script finds it."""
        return {
            "PALMETTE_URL": self.url,
            "PALMETTE_KEY": self.key,
            "PALMETTE_ADMIN_KEY": self.admin_key,
            "PALMETTE_MODEL": MODEL,
        }


@contextlib.contextmanager
def served(options: Sequence[str] = (), *, log: str | None = None) -> Iterator[Address]:
    """A server on a free port with keys of its own; what it logs goes to the file `log`, or nowhere.

    Raises:
        CannotStart
    """
    key, admin_key = (f"pk-{secrets.token_hex(16)}" for _ in range(2))
    command = [sys.executable, "-m", "palmette", "serve", "--model", MODEL, "--port", "0", *options]
    variables = {**os.environ, "PALMETTE_API_KEY": key, "PALMETTE_ADMIN_KEY": admin_key, "HF_HUB_OFFLINE": "1"}
    with open(log or os.devnull, "a+") as errors:
        process = subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        lines = _Lines(process)
        try:
            url = lines.wait_for_url()
            if url is None:
                raise CannotStart(f"{' '.join(command[1:])} did not come up; see {log or 'its log: pass --log'}")
            yield Address(url, key, admin_key)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            lines.close()


def url_in(line: str) -> str | None:
    """The URL in the line that says the server is ready."""
    found = re.search(r"https?://[^\s/]+", line)
    return found[0] if found else None


class _Lines:
    """Reads what a server prints, to the end, so that printing never blocks it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None, "it is a pipe"
        self._lines = process.stdout
        self._url: str | None = None
        self._is_known = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_for_url(self) -> str | None:
        """The URL that the server prints; None if it ends first or takes too long."""
        self._is_known.wait(START_SECONDS)
        return self._url

    def close(self) -> None:
        """Once the server is gone."""
        self._thread.join()
        self._lines.close()

    def _read(self) -> None:
        for line in self._lines:
            self._url = self._url or url_in(line)
            if self._url is not None:
                self._is_known.set()
        self._is_known.set()
