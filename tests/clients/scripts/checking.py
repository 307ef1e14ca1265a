"""What every client script stands on: where the server is, and named checks that are counted.

Runs in the client's own environment, so it knows the standard library only. A script registers functions with
`@suite.check` and ends in `suite.main()`; one that fails hides none of the others. The last line printed is
`RESULT {json}`, which `tests.clients.run` reads.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import json
import os
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

RESULT = "RESULT "


@dataclass(frozen=True, slots=True)
class Server:
    """The server under test, as the runner's environment variables name it."""

    url: str  # without /v1
    key: str  # an API key that it knows; "" = it has none
    admin_key: str  # one that may flush; "" = it has none
    model: str  # the name that it serves

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"

    @property
    def sent_key(self) -> str:
        """What to hand to a client that insists on a key."""
        return self.key or "none-needed"

    def ask(self, path: str, body: object = None) -> Any:
        """The JSON answer to a POST of `body`, or to a GET without one."""
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **self.authorization},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def tokens(self, text: str) -> list[int]:
        """The token ids of `text`, by the server's /tokenize."""
        found: list[int] = self.ask("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
        return found

    def is_idle(self, seconds: float = 20.0) -> bool:
        """Does the server come to run nothing within `seconds`?"""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stats = self.ask("/stats")
            if stats["running"] == 0 and stats["waiting"] == 0:
                return True
            time.sleep(0.1)
        return False


server = Server(
    url=os.environ.get("PALMETTE_URL", "http://127.0.0.1:30000").rstrip("/"),
    key=os.environ.get("PALMETTE_KEY", ""),
    admin_key=os.environ.get("PALMETTE_ADMIN_KEY", ""),
    model=os.environ.get("PALMETTE_MODEL", "smollm2"),
)


class Suite:
    """The checks of one client. `packages` are those whose versions are reported."""

    def __init__(self, *packages: str) -> None:
        self.packages = packages
        self.checks: list[Callable[[], Any]] = []

    def check(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """Register a check: a function without arguments, or a coroutine function, that asserts."""
        self.checks.append(function)
        return function

    def main(self) -> None:
        """Run the checks that the command line names (all of them without names), then leave; exit 1 if one failed."""
        versions = {name: importlib.metadata.version(name) for name in self.packages}
        say(", ".join(f"{name} {version}" for name, version in versions.items()), "against", server.url)
        wanted = sys.argv[1:]
        failed: list[str] = []
        passed = 0
        for check in self.checks:
            name = check.__name__
            if wanted and name not in wanted:
                continue
            start = time.monotonic()
            try:
                outcome = check()
                if inspect.iscoroutine(outcome):
                    outcome = asyncio.run(outcome)
            except Exception:  # noqa: BLE001 - the next check must run whatever this one met
                failed.append(name)
                say("FAILED", name)
                say(traceback.format_exc())
                continue
            passed += 1
            say(f"ok      {name} ({time.monotonic() - start:.1f} s)", f": {outcome}" if outcome else "")
        say(RESULT + json.dumps({"versions": versions, "passed": passed, "failed": failed}))
        sys.stdout.flush()
        # Clients leave threads and loops behind that would delay the end.
        os._exit(1 if failed or not passed else 0)


class Raised:
    """`with Raised(Kind) as raised: ...` passes if the block raises a Kind, which is then `raised.error`."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind
        self.error: Any = None

    def __enter__(self) -> Raised:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        assert error is not None, f"nothing was raised, where {self.kind.__name__} was to be"
        self.error = error
        return isinstance(error, self.kind)


def say(*words: object) -> None:
    """One line of output."""
    sys.stdout.write(" ".join(str(word) for word in words) + "\n")
    sys.stdout.flush()
