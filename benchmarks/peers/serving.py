"""Our server for as long as a client of it is measured: started with the work's own command, or one that runs already.

    PALMETTE_URL=http://127.0.0.1:30000 python -m benchmarks.peers.sglang WORK.json --rows shared_32

Runs in the client's own interpreter: the standard library and nothing of ours. Its processes are children of the
client's, so that whoever stops or ends that one reaches them too.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Sequence
from functools import partial
from typing import IO, Any

from benchmarks.peers.protocol import die_with_parent

KEY = "PALMETTE_API_KEY"
ANSWER_SECONDS = 200.0


class Server:
    """`palmette serve` at `url`. A key is sent only to one that was given, from PALMETTE_API_KEY; ours has none."""

    def __init__(self, command: Sequence[str]) -> None:
        self.url, self.key = os.environ.get("PALMETTE_URL", "").rstrip("/"), os.environ.get(KEY)
        self._process: subprocess.Popen[str] | None = None
        self._written: dict[tuple[str, ...], list[list[int]]] = {}  # by row and texts
        if self.url:
            return
        if not command:
            raise ValueError("no server: set PALMETTE_URL, or let python -m benchmarks.peers write the work file")
        self.key = None
        variables = {name: value for name, value in os.environ.items() if name not in (KEY, "PALMETTE_ADMIN_KEY")}
        self._process = subprocess.Popen(
            list(command),
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=partial(die_with_parent, signal.SIGTERM),
        )
        assert self._process.stdout is not None, "it is a pipe"
        self.url = _url(self._process.stdout)
        if not self.url:
            self._process.stdout.close()
            raise RuntimeError(f"{' '.join(command)} ended with exit code {self._process.wait()} and served nothing")
        self._reader = threading.Thread(target=_drain, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def ask(self, path: str, data: dict[str, Any]) -> Any:
        """POST JSON; the answer's JSON.

        Raises:
            OSError: it refuses or is gone.
        """
        headers = {"content-type": "application/json", **({"authorization": f"Bearer {self.key}"} if self.key else {})}
        request = urllib.request.Request(self.url + path, json.dumps(data).encode(), headers)
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return json.loads(answer.read())

    def written(self, row: dict[str, Any], texts: Sequence[str]) -> list[list[int]]:
        """The token ids of a row's answers, of which a program tells the text: asked again, once for each outcome.

        Raises:
            ValueError: the server gives other texts now.
        """
        key = (row["name"], *texts)
        if key not in self._written:
            params = {"max_new_tokens": row["num_new"], "temperature": 0.0, "ignore_eos": True}
            answers = self.ask("/generate", {"text": row["texts"], "sampling_params": params})
            if (said := [answer["text"] for answer in answers]) != list(texts):
                other = sum(a != b for a, b in zip(said, texts, strict=True))
                raise ValueError(f"{other} of {len(said)} prompts got another answer when they were asked again")
            self._written[key] = [answer["output_ids"] for answer in answers]
        return self._written[key]

    def close(self) -> None:
        """End what was started here."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()


def _url(lines: IO[str]) -> str:
    """From the line that says that it is ready; "" where it ends first."""
    for line in lines:
        if found := re.search(r"https?://[^\s/]+", line):
            return found[0]
    return ""


def _drain(lines: IO[str]) -> None:
    """Read on, so that printing never blocks it."""
    with lines:
        for _ in lines:
            pass
