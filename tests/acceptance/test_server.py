"""The server's acceptance line that needs size: load on the embedded model. At full size with --full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import psutil
import pytest

from tests.conftest import Figures
from tests.runtime.server.processes import ROOT, Spawned, spawned

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not os.environ.get("PALMETTE_ACCEPTANCE"), reason="minutes long: PALMETTE_ACCEPTANCE=1"),
    pytest.mark.timeout(1800),
]
COMMAND = [sys.executable, "-m", "tests.acceptance.loading"]


def loaded(server: Spawned, count: int, tokens: int, kind: str) -> dict[str, Any]:
    """What came of `count` requests at once, what a bystander saw, and by how many MB the server grew at most."""
    family = server.processes()
    before = sum(process.memory_info().rss for process in family)
    most, over = [before], threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            most.append(sum(process.memory_info().rss for process in family if process.is_running()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    probe = subprocess.Popen(
        [*COMMAND, "probe", server.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        load = [*COMMAND, "load", server.url, str(count), str(tokens), kind]
        done = subprocess.run(load, capture_output=True, text=True, check=True, cwd=ROOT, timeout=1500)
        seen, _ = probe.communicate(timeout=60)
    finally:
        probe.kill()
        over.set()
        watcher.join()
    return {**json.loads(done.stdout), **json.loads(seen), "grown_mb": round((max(most) - before) / 1e6)}


def test_line_4_a_thousand_streams_and_ten_thousand_requests(full: bool, figures: Figures) -> None:
    with spawned("--model", "smollm2") as server:
        count = 1000 if full else 100
        assert loaded(server, 32, 4, "stream")["outcomes"] == {"200": 32}
        streams = loaded(server, count, 32, "stream")
        figures(streams=streams)
        assert streams["outcomes"] == {"200": count}
        count = 10_000 if full else 3000
        requests = loaded(server, count, 32, "whole")
        figures(requests=requests)
        assert sum(requests["outcomes"].get(status, 0) for status in ("200", "429")) == count
        for result in (streams, requests):
            assert set(result["health"]) == {"200"}
            assert result["health_p99"] < 0.25
            assert result["refused_after_max"] < 1.0
            assert result["grown_mb"] < 500
        time.sleep(1.5)
        server.wait_idle()
        assert not [child for child in server.processes() if child.status() == psutil.STATUS_ZOMBIE]
