"""Run the clients' scripts, each in its own environment, against a server, and print what held.

    python -m tests.clients.run                      # makes the environments (minutes, gigabytes), starts servers
    python -m tests.clients.run --group openai       # or --client langchain
    python -m tests.clients.run --client openai --check echo_with_logprobs --verbose
    python -m tests.clients.run --base-url http://127.0.0.1:30000 --api-key ...

Exit code 1 if a check failed, a script did not run, or an environment could not be made.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from palmette.runtime.models.find import find_model
from tests.clients.environments import CannotInstall, python_of
from tests.clients.groups import CLIENTS, HERE, Client
from tests.clients.serving import MODEL, Address, CannotStart, served

CACHE = Path(os.environ.get("PALMETTE_CLIENTS_CACHE") or HERE.parent.parent / ".clients").resolve()
SCRIPT_SECONDS = 900.0
RESULT = "RESULT "  # as scripts/checking.py prints it


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one client's script came to. `trouble` says why there is no result."""

    client: Client
    versions: dict[str, str]
    passed: int
    failed: tuple[str, ...]
    seconds: float
    output: str
    trouble: str = ""

    @property
    def is_good(self) -> bool:
        return not self.trouble and not self.failed and self.passed > 0

    @property
    def verdict(self) -> str:
        if self.trouble:
            return self.trouble
        return "all" if not self.failed else f"FAILED: {', '.join(self.failed)}"


def run_script(client: Client, address: Address, cache: Path, checks: Sequence[str] = ()) -> Outcome:
    """Run one client's script, then what its page shows; never raises for what the client or the server does.

    With `checks`, those checks of the script alone.
    """
    try:
        python = python_of(client.group, cache)
    except CannotInstall as error:
        return Outcome(client, {}, 0, (), 0.0, str(error), "no environment")
    began = time.monotonic()
    try:
        _, output = _run(python, client.path, address, cache, *checks)
        outcome = read_output(client, output, time.monotonic() - began)
        for i, code in enumerate([] if checks or outcome.trouble else page_code(client, address)):
            file = cache / f"page_{client.name}_{i}.py"
            file.write_text(code)
            exit_code, output = _run(python, file, address, cache)
            outcome = _with_page(outcome, exit_code, output, time.monotonic() - began)
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        text = said.decode(errors="replace") if isinstance(said, bytes) else said
        return Outcome(client, {}, 0, (), time.monotonic() - began, text, f"no end within {SCRIPT_SECONDS:.0f} s")
    return outcome


def page_code(client: Client, address: Address) -> list[str]:
    """The Python that a client's page shows, with this server's address and key in the place of the page's."""
    blocks = re.findall(r"^```python\n(.*?)^```", client.page.read_text(), re.MULTILINE | re.DOTALL)
    return [b.replace("http://127.0.0.1:30000", address.url).replace("none-needed", address.key or "k") for b in blocks]


def read_output(client: Client, output: str, seconds: float) -> Outcome:
    """The outcome that a script's last RESULT line tells."""
    told = [line for line in output.splitlines() if line.startswith(RESULT)]
    if not told:
        return Outcome(client, {}, 0, (), seconds, output, "no result")
    result = json.loads(told[-1].removeprefix(RESULT))
    return Outcome(client, result["versions"], result["passed"], tuple(result["failed"]), seconds, output)


def run_clients(
    clients: Sequence[Client], cache: Path, *, address: Address | None = None, checks: Sequence[str] = (), log: str = ""
) -> list[Outcome]:
    """Run them in turn, those that want the same server on one; none is started where an `address` is given.

    Raises:
        CannotStart
    """
    cache.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for options, alike in groupby(sorted(clients, key=lambda c: c.server), key=lambda c: c.server):
        if address is not None:
            outcomes += [_shown(run_script(client, address, cache, checks)) for client in alike]
            continue
        with served(options, log=log or str(cache / "server.log")) as ours:
            outcomes += [_shown(run_script(client, ours, cache, checks)) for client in alike]
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """What a person reads: a line per client."""
    rows = [("client", "versions", "checks", "seconds", "held")]
    for o in outcomes:
        versions = ", ".join(f"{name} {version}" for name, version in o.versions.items())
        rows.append((o.client.name, versions, f"{o.passed}/{o.passed + len(o.failed)}", f"{o.seconds:.0f}", o.verdict))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _run(python: Path, file: Path, address: Address, cache: Path, *arguments: str) -> tuple[int, str]:
    """The exit code of a script in an environment, and what it said."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OPENAI", "VIRTUAL"))}
    done = subprocess.run(
        [str(python), "-W", "ignore", str(file), *arguments],
        env={**kept, **address.environment(), **_extras(cache)},
        cwd=cache,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SCRIPT_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout


def _with_page(outcome: Outcome, exit_code: int, output: str, seconds: float) -> Outcome:
    failed = outcome.failed if exit_code == 0 else (*outcome.failed, "the page's code")
    said = f"{outcome.output}\n-- the page's code: exit {exit_code}\n{output}"
    passed = outcome.passed + (exit_code == 0)
    return replace(outcome, passed=passed, failed=failed, output=said, seconds=seconds)


def _extras(cache: Path) -> dict[str, str]:
    return {"PALMETTE_GGUF": str(find_model(MODEL)[0]), "PALMETTE_CLIENTS_CACHE": str(cache)}


def _shown(outcome: Outcome) -> Outcome:
    _say(f"{outcome.client.name}: {outcome.passed} held, {outcome.verdict} ({outcome.seconds:.0f} s)")
    if not outcome.is_good:
        _say(outcome.output)
    return outcome


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients.run", description="Real clients against a server.")
    parser.add_argument("--group", action="append", choices=sorted({c.group.name for c in CLIENTS}))
    parser.add_argument("--client", action="append", choices=[c.name for c in CLIENTS])
    parser.add_argument("--check", action="append", default=[], help="a check by its name, instead of all")
    parser.add_argument("--base-url", help="a server that runs already (without /v1)")
    parser.add_argument("--api-key", default="", help="of that server")
    parser.add_argument("--admin-key", default="", help="of that server, for flushing its cache")
    parser.add_argument("--cache", type=Path, default=CACHE, help="of the environments; or PALMETTE_CLIENTS_CACHE")
    parser.add_argument("--log", default="", help="file for the log of servers started here  [CACHE/server.log]")
    parser.add_argument("--verbose", action="store_true", help="print what the scripts print")
    options = parser.parse_args(arguments)
    chosen = [
        c
        for c in CLIENTS
        if (not options.group and not options.client)
        or c.group.name in (options.group or ())
        or c.name in (options.client or ())
    ]
    address = Address(options.base_url.rstrip("/"), options.api_key, options.admin_key) if options.base_url else None
    try:
        outcomes = run_clients(chosen, options.cache.resolve(), address=address, checks=options.check, log=options.log)
    except CannotStart as error:
        _say(f"error: {error}")
        return 1
    if options.verbose:
        for outcome in outcomes:
            _say(f"== {outcome.client.name}\n{outcome.output}")
    _say(table(outcomes))
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
