"""Hints of programs: counted, bounded, forgotten in time, each client's apart; and they never change a result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from palmette.runtime.config import CacheConfig, RuntimeConfig
from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.server import programs
from palmette.runtime.server.clients import Client
from palmette.runtime.server.config import ServerConfig, ServerLimits
from palmette.runtime.server.local_link import LocalLink
from palmette.runtime.server.programs import ProgramBody, ProgramBook
from palmette.types import (
    BranchesEnded,
    EmbedRequest,
    ForkDeclared,
    GenerateRequest,
    Hints,
    ProgramEnded,
    ProgramEvent,
    Request,
)
from tests.runtime.server.serving import Served, serving

ANN, BOB = Client("ann", "ann"), Client("bob", "bob")
KEYS = ("key-of-ann", "key-of-bob")


class Book(ProgramBook):
    """A book whose clock the test moves and whose events it reads."""

    def __init__(self, ttl: float = 30.0) -> None:
        self.now = 0.0
        self.told: list[ProgramEvent] = []
        super().__init__(self.told.append, lambda: self.now, ttl)


def in_loop(test: Callable[[Book], None]) -> None:
    async def run() -> None:
        book = Book()
        test(book)
        book.close()

    asyncio.run(run())


def body(program: str = "p", **fields: Any) -> ProgramBody:
    return ProgramBody(id=program, **fields)


def test_a_requests_hints_carry_the_clients_name() -> None:
    def test(book: Book) -> None:
        with book.request(ANN, body(shared_len=4, siblings=3, last_use=True, critical=True)) as hints:
            assert hints == Hints("ann/p", 4, 3, True, True)
        with book.request(BOB, body()) as hints:
            assert hints == Hints("bob/p")
        with book.request(ANN, None) as hints:
            assert hints == Hints()

    in_loop(test)


def test_a_program_is_forgotten_its_time_after_its_last_request_and_not_while_one_runs() -> None:
    def test(book: Book) -> None:
        with book.request(ANN, body()):
            book.now = 100.0
            book.sweep()
            assert not book.told
        book.now = 129.0
        book.sweep()
        assert not book.told
        assert len(book) == 1
        book.now = 130.0
        book.sweep()
        assert book.told == [ProgramEnded("ann/p")]
        assert len(book) == 0

    in_loop(test)


def test_a_later_request_of_the_client_sweeps_too() -> None:
    def test(book: Book) -> None:
        with book.request(ANN, body("old")):
            pass
        book.now = 31.0
        with book.request(ANN, body("new")):
            assert book.told == [ProgramEnded("ann/old")]

    in_loop(test)


def test_the_timer_alone_forgets_and_leaves_nothing_behind() -> None:
    async def run() -> None:
        told: list[ProgramEvent] = []
        book = ProgramBook(told.append, time.monotonic, 0.02)
        with book.request(ANN, body()), book.request(BOB, body()):
            pass
        while len(told) < 2:
            await asyncio.sleep(0.005)
        assert set(told) == {ProgramEnded("ann/p"), ProgramEnded("bob/p")}
        assert len(book) == 0
        assert book._timer is None, "no timer runs for nobody"

    asyncio.run(asyncio.wait_for(run(), 20))


def test_an_end_is_told_once_and_again_only_after_requests_that_outlived_it() -> None:
    def test(book: Book) -> None:
        with book.request(ANN, body()):
            assert book.end(ANN, "p")
            assert not book.end(ANN, "p")
            assert book.told == [ProgramEnded("ann/p")]
        assert book.told == [ProgramEnded("ann/p")] * 2
        with book.request(ANN, body("q")):
            pass
        assert book.end(ANN, "q")
        assert book.told[2:] == [ProgramEnded("ann/q")]

    in_loop(test)


def test_nobody_ends_or_counts_down_anothers_program() -> None:
    def test(book: Book) -> None:
        assert book.fork(ANN, "p", (1, 2), 3, "ann")
        assert not book.end(BOB, "p")
        assert not book.branches_ended(BOB, "p", (1, 2), 3, "bob")
        assert book.told == [ForkDeclared("ann/p", (1, 2), 3, "ann")]
        assert book.branches_ended(ANN, "p", (1, 2), 2, "ann")
        assert book.told[1:] == [BranchesEnded("ann/p", (1, 2), 2, "ann")]
        assert not book.branches_ended(ANN, "p", (1, 2, 3), 1, "ann"), "nothing was announced there"

    in_loop(test)


def test_a_client_beyond_its_programs_gets_no_hints_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "MAX_PROGRAMS", 3)

    def test(book: Book) -> None:
        with ExitStack() as stack:
            for i in range(3):
                assert stack.enter_context(book.request(ANN, body(f"p{i}"))).program
            assert stack.enter_context(book.request(ANN, body("one more"))) == Hints()
            assert stack.enter_context(book.request(ANN, body("p1"))).program == "ann/p1"
            assert stack.enter_context(book.request(BOB, body("p0"))).program == "bob/p0"
            assert not book.fork(ANN, "one more", (1,), 2, "")
        book.end(ANN, "p0")
        with book.request(ANN, body("one more")) as hints:
            assert hints.program == "ann/one more"

    in_loop(test)


def test_siblings_beyond_the_clients_bound_are_not_announced_until_others_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "MAX_SIBLINGS", 10)

    def test(book: Book) -> None:
        assert book.fork(ANN, "p", (1, 2), 8, "")
        assert not book.fork(ANN, "q", (1, 2), 3, "")
        with book.request(ANN, body("q", shared_len=5, siblings=3)) as hints:
            assert hints == Hints("ann/q"), "the program is known, its fork is not"
        assert book.fork(BOB, "q", (1, 2), 10, "")
        with book.request(ANN, body("p", shared_len=2, siblings=8)) as hints:
            assert hints == Hints("ann/p", 2, 8), "one of the eight came"
        assert book.fork(ANN, "q", (1, 2), 3, "")
        assert book.branches_ended(ANN, "p", (1, 2), 100, "")
        assert book.fork(ANN, "q", (1, 2, 3), 7, "")
        assert not book.fork(ANN, "q", (1,), 1, "")
        book.end(ANN, "q")
        assert book.fork(ANN, "p", (1,), 10, "")

    in_loop(test)


def test_siblings_that_nobody_announced_count_as_they_come() -> None:
    def test(book: Book) -> None:
        for _ in range(3):
            with book.request(ANN, body(shared_len=7, siblings=3)) as hints:
                assert hints.siblings == 3
        assert book._tenants[ANN].awaited == 0
        assert not book._tenants[ANN].programs["p"].awaited

    in_loop(test)


# -- on a server -------------------------------------------------------------------------------------------------------


Heard = tuple[Served, list[ProgramEvent], list[Request]]


@pytest.fixture(scope="module")
def heard() -> Iterator[Heard]:
    """A server with two clients, what its engine was told, and what it was asked."""
    with listening() as found:
        yield found


@contextmanager
def listening(**limits: Any) -> Iterator[Heard]:
    events: list[ProgramEvent] = []
    requests: list[Request] = []
    notify, submit = LocalLink.notify, LocalLink.submit

    def noted(link: LocalLink, event: ProgramEvent) -> None:
        events.append(event)
        notify(link, event)

    def asked(link: LocalLink, request: Request) -> None:
        requests.append(request)
        submit(link, request)

    config = ServerConfig(api_keys=KEYS, admin_key="key-of-admin", limits=ServerLimits(**limits))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalLink, "notify", noted)
        patch.setattr(LocalLink, "submit", asked)
        with serving(tiny_model(), config) as served:
            yield served, events, requests


def post(served: Served, path: str, data: dict[str, Any], key: str = KEYS[0]) -> Any:
    with served.client(headers={"authorization": f"Bearer {key}"}) as client:
        answer = client.post(path, json=data)
        return answer.json() if answer.status_code == 200 else (answer.status_code, answer.json()["error"])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def test_programs_on_the_wire_reach_the_engine_under_the_clients_name(heard: Heard) -> None:
    served, _, requests = heard
    names = [served.service.clients.find(f"Bearer {key}") for key in KEYS]
    ann, bob = (client for client in names if client is not None)
    asked = {"text": "abc", "sampling_params": {"max_new_tokens": 1}}
    post(served, "/generate", asked | {"program": {"id": "x", "stream": [0, 1], "siblings": 2, "shared_len": 2}})
    post(served, "/generate", asked | {"program": {"id": "x", "critical": True}}, KEYS[1])
    post(served, "/generate", asked)
    trie = {"trie": {"token_ids": [5], "parents": [-1]}, "program": {"id": "x", "last_use": True}}
    post(served, "/palmette/score", {"input_ids": [1, 2]} | trie)
    hints = [request.hints for request in requests if not isinstance(request, EmbedRequest)][-4:]
    assert hints[:2] == [Hints(f"{ann.name}/x", 2, 2), Hints(f"{bob.name}/x", critical=True)]
    assert hints[2:] == [Hints(), Hints(f"{ann.name}/x", last_use=True)]


def test_the_samples_of_one_prompt_are_siblings(heard: Heard) -> None:
    served, _, requests = heard
    asked = {"text": "abcd", "sampling_params": {"max_new_tokens": 1, "n": 3}}
    post(served, "/generate", asked | {"program": {"id": "n"}})
    hints = [request.hints for request in requests if isinstance(request, GenerateRequest)][-3:]
    assert {(each.shared_len, each.siblings, each.program.partition("/")[2]) for each in hints} == {(4, 3, "n")}


def test_a_servers_programs_end_in_time_by_themselves() -> None:
    with listening(program_ttl=0.05) as (served, events, _):
        ann = served.service.clients.find(f"Bearer {KEYS[0]}")
        assert ann is not None
        post(served, "/generate", {"text": "abc", "sampling_params": {"max_new_tokens": 1}, "program": {"id": "x"}})
        until(lambda: ProgramEnded(f"{ann.name}/x") in events)


def test_the_events_between_requests(heard: Heard) -> None:
    served, events, _ = heard
    ann = served.service.clients.find(f"Bearer {KEYS[0]}")
    assert ann is not None
    prefix = {"program": "y", "input_ids": [1, 2, 3], "cache_salt": "s"}
    assert post(served, "/palmette/program/fork", prefix | {"siblings": 4}) == {"noted": True}
    assert post(served, "/palmette/program/branches_ended", prefix | {"count": 2}) == {"noted": True}
    assert post(served, "/program/end", {"program": "y"}, KEYS[1]) == {"noted": False}
    assert post(served, "/program/end", {"program": "y"}) == {"noted": True}
    name = f"{ann.name}/y"
    until(lambda: ProgramEnded(name) in events)
    told = [event for event in events if event.program == name]
    assert told == [
        ForkDeclared(name, (1, 2, 3), 4, f"{ann.namespace}/s"),
        BranchesEnded(name, (1, 2, 3), 2, f"{ann.namespace}/s"),
        ProgramEnded(name),
    ]


def test_several_programs_end_in_one_request(heard: Heard) -> None:
    served, events, _ = heard
    ann = served.service.clients.find(f"Bearer {KEYS[0]}")
    assert ann is not None
    for name in ("e1", "e2", "e3"):
        assert post(served, "/palmette/program/fork", {"program": name, "input_ids": [1], "siblings": 2})["noted"]
    assert post(served, "/program/end", {"programs": ["e1", "e3", "unheard of"]}) == {"noted": True}
    assert post(served, "/program/end", {"programs": ["unheard of"]}) == {"noted": False}
    assert post(served, "/program/end", {"programs": []}) == {"noted": False}
    until(lambda: ProgramEnded(f"{ann.name}/e3") in events)
    assert ProgramEnded(f"{ann.name}/e1") in events
    assert ProgramEnded(f"{ann.name}/e2") not in events


@pytest.mark.parametrize(
    ("path", "data", "param"),
    [
        ("/generate", {"text": "a", "program": {}}, "program.id"),
        ("/generate", {"text": "a", "program": {"id": ""}}, "program.id"),
        ("/generate", {"text": "a", "program": {"id": "x" * 129}}, "program.id"),
        ("/generate", {"text": "a", "program": {"id": "x", "siblings": -1}}, "program.siblings"),
        ("/generate", {"text": "a", "program": {"id": "x", "stream": [0.5]}}, "program.stream[0]"),
        ("/palmette/program/fork", {"program": "x", "input_ids": [1], "siblings": 0}, "siblings"),
        ("/palmette/program/fork", {"program": "x", "input_ids": [], "siblings": 2}, "input_ids"),
        ("/palmette/program/fork", {"program": "x", "input_ids": [260], "siblings": 2}, "input_ids"),
        ("/palmette/program/fork", {"program": "x", "input_ids": [1 << 40], "siblings": 2}, "input_ids[0]"),
        ("/palmette/program/branches_ended", {"program": "x", "input_ids": [1], "count": 0}, "count"),
        ("/palmette/program/branches_ended", {"program": "x", "input_ids": [-1], "count": 1}, "input_ids[0]"),
        ("/program/end", {}, "program"),
        ("/program/end", {"program": "x", "programs": ["y"]}, "program"),
        ("/program/end", {"programs": [""]}, "programs[0]"),
        ("/program/end", {"programs": ["x"] * 1025}, "programs"),
    ],
)
def test_what_is_no_program_is_refused_by_the_name_of_its_field(
    heard: Heard, path: str, data: dict[str, Any], param: str
) -> None:
    status, error = post(heard[0], path, data)
    assert (status, error["param"]) == (400, param)


def test_a_fork_longer_than_the_context_is_refused(heard: Heard) -> None:
    data = {"program": "x", "input_ids": [1] * 2049, "siblings": 2}
    assert post(heard[0], "/palmette/program/fork", data)[0] == 400


def test_hints_change_no_result() -> None:
    """The same requests with every kind of hint, true and false ones, and without any, on a cache that is too small."""
    prompts = [f"prefix that is shared by all of them {i % 3}" for i in range(9)]

    def answers(hints: bool) -> list[Any]:
        config = ServerConfig(runtime=RuntimeConfig(cache=CacheConfig(kv_tokens=128)))
        with serving(tiny_model(), config) as served:
            got = []
            for i, prompt in enumerate(prompts):
                data: dict[str, Any] = {
                    "text": prompt,
                    "sampling_params": {"max_new_tokens": 12, "sampling_seed": i, "n": 2},
                    "return_logprob": True,
                }
                if hints:
                    shared = {"shared_len": 20 + i * 7, "siblings": i, "last_use": i % 2 == 0, "critical": i % 3 == 0}
                    data["program"] = {"id": f"p{i % 2}", **shared}
                    fork = {"program": f"p{i % 2}", "input_ids": list(prompt.encode()), "siblings": 5}
                    post(served, "/palmette/program/fork", fork)
                got += post(served, "/generate", data)
                if hints and i == 5:
                    post(served, "/program/end", {"program": "p0"})
            return [
                (a["text"], a["output_ids"], [row[1] for row in a["meta_info"]["output_token_logprobs"]]) for a in got
            ]

    assert answers(True) == answers(False)
