"""The clients under pytest: what is listed is there, and, with PALMETTE_CLIENTS=1, every script holds."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.environments import fingerprint
from tests.clients.groups import CLIENTS, REQUIREMENTS, SCRIPTS, Client, Group
from tests.clients.run import CACHE, Outcome, page_code, read_output, run_script, table
from tests.clients.serving import Address, served, url_in

GROUPS = sorted({client.group for client in CLIENTS}, key=lambda group: group.name)


def test_every_script_belongs_to_a_client() -> None:
    assert {c.script for c in CLIENTS} == {p.name for p in SCRIPTS.glob("*_client.py")}


@pytest.mark.parametrize("client", CLIENTS, ids=lambda c: c.name)
def test_every_client_has_checks_and_a_page(client: Client) -> None:
    tree = ast.parse(client.path.read_text())
    checks = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any(ast.unparse(decorator) == "suite.check" for decorator in node.decorator_list)
    ]
    assert len(checks) >= 4
    assert all(can_fail(check) for check in checks)
    assert "palmette serve" in client.page.read_text()


def can_fail(check: ast.AST) -> bool:
    """Does a check assert, itself or by one of the helpers that do?"""
    helpers = {"Raised", "compare"}
    return any(
        isinstance(node, ast.Assert) or (isinstance(node, ast.Name) and node.id in helpers) for node in ast.walk(check)
    )


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.name)
def test_requirements_are_pinned(group: Group) -> None:
    for path in REQUIREMENTS.glob(f"{group.name}*.txt"):
        for line in path.read_text().splitlines():
            if line and not line.startswith("#"):
                assert re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z-]+\])?==[0-9][0-9a-z.]*", line), line


def test_an_environment_is_made_anew_when_its_requirements_change() -> None:
    assert len({fingerprint(group) for group in GROUPS}) == len(GROUPS)


def test_the_ready_line_names_the_address() -> None:
    assert url_in("palmette serves smollm2 at http://127.0.0.1:31234\n") == "http://127.0.0.1:31234"
    assert url_in("INFO: loading") is None


def test_the_code_of_a_page_is_run_on_the_server_at_hand() -> None:
    (client,) = [c for c in CLIENTS if c.name == "openai"]
    (code,) = page_code(client, Address("http://127.0.0.1:31234", key="pk-1"))
    assert 'base_url="http://127.0.0.1:31234/v1"' in code
    assert 'api_key="pk-1"' in code
    assert ":30000" not in code
    assert sum(len(page_code(c, Address("http://127.0.0.1:31234"))) for c in CLIENTS) >= len(CLIENTS) - 1


def test_a_script_without_a_result_or_with_a_failure_is_not_good() -> None:
    client = CLIENTS[0]
    good = read_output(client, 'ok a\nRESULT {"versions": {"openai": "3"}, "passed": 2, "failed": []}\n', 1.0)
    bad = read_output(client, 'RESULT {"versions": {}, "passed": 2, "failed": ["b"]}\n', 1.0)
    silent = read_output(client, "Traceback ...\n", 1.0)
    nothing = read_output(client, 'RESULT {"versions": {}, "passed": 0, "failed": []}\n', 1.0)
    assert [o.is_good for o in (good, bad, silent, nothing)] == [True, False, False, False]
    shown = table([good, bad, silent])
    assert "openai 3" in shown
    assert "FAILED: b" in shown
    assert "no result" in shown


# -- the real thing: minutes, and gigabytes of packages ---------------------------------------------------------------

real = pytest.mark.skipif(
    os.environ.get("PALMETTE_CLIENTS") != "1", reason="installs the clients; PALMETTE_CLIENTS=1 or `make clients`"
)


@pytest.fixture(scope="module")
def cache() -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    return CACHE


@pytest.fixture(scope="module")
def address(cache: Path) -> Iterator[Address]:
    with served(log=str(cache / "server.log")) as found:
        yield found


@pytest.fixture(scope="module")
def exact_address(cache: Path) -> Iterator[Address]:
    with served(("--dtype", "float32"), log=str(cache / "server.log")) as found:
        yield found


def hold(outcome: Outcome) -> None:
    assert outcome.is_good, f"{outcome.verdict}\n{outcome.output}"


@real
@pytest.mark.model
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("client", [c for c in CLIENTS if not c.server], ids=lambda c: c.name)
def test_client_holds(client: Client, address: Address, cache: Path) -> None:
    hold(run_script(client, address, cache))


@real
@pytest.mark.model
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("client", [c for c in CLIENTS if c.server], ids=lambda c: c.name)
def test_client_holds_in_float32(client: Client, exact_address: Address, cache: Path) -> None:
    hold(run_script(client, exact_address, cache))
