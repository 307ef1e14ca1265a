"""`palmette serve` as a user starts it, with its processes at hand: for tests that kill them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil

ROOT = Path(__file__).parents[3]
SECONDS = 40.0  # that anything may take here on a busy machine


@dataclass
class Spawned:
    """A server in processes of its own."""

    url: str
    process: subprocess.Popen[str]

    def child(self, module: str) -> psutil.Process:
        """The child that runs a module of the server, such as "engine_process". Waits until there is one."""

        def look() -> psutil.Process | None:
            for each in psutil.Process(self.process.pid).children():
                try:
                    if any(part.endswith(f".{module}") for part in each.cmdline()):
                        return each
                except psutil.Error:
                    continue
            return None

        return wait_for(look, f"a child that runs {module}")

    def processes(self) -> list[psutil.Process]:
        """All of them."""
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def client(self, **options: Any) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=SECONDS, **options)

    def connected(self, *, is_narrow: bool = False) -> socket.socket:
        """A bare connection. It is the caller's to close.

        Args:
            is_narrow: no more than some 100 KB wait in it to be read. Else it is megabytes: on the loopback a segment
                is 64 KB, and the sender's buffer is as large as many segments.
        """
        host, port = self.url.removeprefix("http://").split(":")
        connection = socket.socket()
        try:
            if is_narrow:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
            connection.settimeout(SECONDS)
            connection.connect((host, int(port)))
        except BaseException:
            connection.close()
            raise
        return connection

    def is_ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False

    def stats(self) -> dict[str, Any]:
        """Fresh ones: the engine tells its numbers once a second."""
        answer = httpx2.get(f"{self.url}/stats", timeout=5)
        assert answer.status_code == 200, answer.text
        data: dict[str, Any] = answer.json()
        return data

    def metric(self, name: str) -> dict[str, float]:
        """What /metrics tells under a name, by its labels."""
        text = httpx2.get(f"{self.url}/metrics", timeout=5).text
        found = re.findall(rf"^palmette:{name}({{.*}})? (\S+)$", text, re.MULTILINE)
        return {labels: float(value) for labels, value in found}

    def wait_idle(self) -> dict[str, Any]:
        """Until nothing runs or waits; every slot is free or cached then."""

        def look() -> dict[str, Any] | None:
            stats = self.stats()
            return stats if stats.get("kv_total") and not stats["running"] and not stats["waiting"] else None

        stats: dict[str, Any] = wait_for(look, "an idle engine")
        assert stats["kv_free"] + stats["kv_evictable"] == stats["kv_total"], stats
        return stats

    def wait_ready(self, seconds: float = SECONDS) -> None:
        wait_for(self.is_ready, "a server that is ready", seconds)


def wait_for(look: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """What `look` gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return found


@contextmanager
def spawned(*args: str, env: Mapping[str, str] | None = None) -> Iterator[Spawned]:
    """`palmette serve --port 0 ARGS`, killed at the end if it still runs."""
    command = [sys.executable, "-m", "palmette", "serve", "--port", "0", *args]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **(env or {})}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
    server = Spawned("", process)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, f"the server did not start: {line!r}"
        server.url = found[0]
        yield server
    finally:
        family = server.processes() if process.poll() is None else []
        for each in family:
            try:
                each.kill()
            except psutil.NoSuchProcess:
                continue
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def read_events(response: httpx2.Response) -> Iterator[dict[str, Any] | str]:
    """The events of a stream: JSON data, and "[DONE]"."""
    for line in response.iter_lines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)
