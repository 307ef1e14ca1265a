"""What a seed of the simulation draws before anything happens: the server's limits, who comes, and what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Literal

from palmette.errors import PalmetteError
from palmette.runtime.chat_template import ChatTemplate
from palmette.runtime.config import CacheConfig, PolicyName, RuntimeConfig, SchedulerConfig
from palmette.runtime.server.clients import Client
from palmette.runtime.server.config import ServerConfig, ServerLimits
from palmette.runtime.tokenizer import Tokenizer
from palmette.specs import Regex, Spec
from palmette.types import (
    ChoiceTrie,
    EmbedRequest,
    Event,
    Finish,
    FinishReason,
    ForkDeclared,
    GenerateRequest,
    Hints,
    ProgramEnded,
    ProgramEvent,
    Request,
    SamplingParams,
    ScoreEvent,
    ScoreRequest,
    TokenEvent,
)

SECRET = bytes(range(32))
VOCAB = (b"a", b"\xc3", b"\xa9", b"b", b"c", b"d")  # the fake model draws the first three: "é" comes in halves
TRIE = ChoiceTrie((0, 1, 2, 1, 2), (-1, 0, 1, 0, -1))
PATIENCE = 1000.0  # request_timeout and queue_timeout where no short one is drawn: nobody comes near it
EXPIRE_SECONDS = 0.25  # as in the front's process
SLACK = 1e-3  # seconds

# Each is in a history with this probability, but in a tenth of them nothing goes wrong at all.
FAULTS = {
    "crashes": 0.4,  # the engine dies at some message
    "poison": 0.12,  # one request kills every engine that computes it
    "stalls": 0.15,  # the engine's process stands still for seconds
    "front crash": 0.08,
    "leaves": 0.4,  # clients that go away
    "slow": 0.2,  # clients that do not read
    "deadlines": 0.3,
    "short queue": 0.4,
    "impatient queue": 0.15,
    "drain": 0.12,
    "bad rows": 0.1,  # NaN
    "refused": 0.3,  # constraints that cannot be, prompts that do not fit
}

Kind = Literal["stream", "whole", "score", "embed"]


class Violation(AssertionError):
    """A history in which a promise was broken."""


class SimTokenizer(Tokenizer):
    """Six tokens of one byte each."""

    def __init__(self) -> None:
        super().__init__(
            vocab_size=len(VOCAB), special={}, eos_ids=frozenset(), bos_id=None, adds_bos=False,
            chat_template=ChatTemplate(None, bos_token="", eos_token=""),
        )  # fmt: skip

    def token_bytes(self, token_id: int) -> bytes:
        return VOCAB[token_id]

    def _encode_plain(self, text: str) -> list[int]:
        return [VOCAB.index(bytes([byte])) for byte in text.encode() if bytes([byte]) in VOCAB]


TOKENIZER = SimTokenizer()


@dataclass(slots=True)
class Visit:
    """One request of one client, and what became of it."""

    request: Request
    client: Client
    kind: Kind
    arrives: float
    leaves: float | None = None  # seconds after its arrival
    aborts: float | None = None  # seconds after its arrival that it says so, over HTTP
    pause: float = 0.0  # seconds between reads
    # what became of it
    asked: float = 0.0
    ended: float = 0.0
    deaths: int = 0  # engines that died while it was there
    could_serve: bool = True  # when it was asked: neither draining nor stalled
    outcome: str = ""
    error: PalmetteError | None = None
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish: Finish | None = None
    values: tuple[float, ...] = ()
    is_sent_away: bool = False  # the server ended or hung up, or its front died
    is_aborted: bool = False  # somebody was there to be aborted

    @property
    def name(self) -> str:
        return self.request.request_id

    def take(self, event: Event) -> None:
        """An event that was handed to the client."""
        if event.request_id != self.name:
            raise Violation(f"{self.name} got an event of {event.request_id}")
        if self.finish is not None or self.outcome:
            raise Violation(f"{self.name} got {event} behind its end")
        if isinstance(event, TokenEvent):
            self.text += event.text
            self.tokens += event.token_ids
            self.finish = event.finish
            return
        values = event.logprobs + event.unconditional if isinstance(event, ScoreEvent) else event.embedding
        if event.error is not None and values:
            raise Violation(f"{self.name} failed and was answered")
        self.values = values
        self.finish = Finish(FinishReason.FAILED if event.error else FinishReason.STOP, error=event.error)


@dataclass(frozen=True, slots=True)
class World:
    """What a seed draws before anything happens."""

    faults: frozenset[str]
    config: ServerConfig
    step_seconds: float
    max_delay: float  # of a message
    visits: tuple[Visit, ...]
    poison: str  # id of the request that kills engines
    stalls: tuple[tuple[float, float], ...]  # (when, seconds)
    front_dies_at: float | None
    drains_at: float | None
    programs: tuple[tuple[float, ProgramEvent], ...]
    flushes_at: float | None  # the cache

    @property
    def kv_tokens(self) -> int:
        """Slots of the pool."""
        return self.config.runtime.cache.kv_tokens or 0


def draw_world(rng: Random) -> World:
    """A world to live through."""
    calm = rng.random() < 0.1
    faults = frozenset(name for name, chance in FAULTS.items() if rng.random() < chance and not calm)
    page_size = rng.choice((1, 1, 2))
    policies: tuple[PolicyName, ...] = ("longest_prefix", "depth_first", "fcfs", "random")
    runtime = RuntimeConfig(
        cache=CacheConfig(kv_tokens=rng.choice((32, 48, 128)), page_size=page_size),
        scheduler=SchedulerConfig(
            max_running=rng.choice((1, 3, 8)), chunk_size=rng.choice((4, 8, 32)), policy=rng.choice(policies),
            decode_reserve=rng.choice((0, 4)),
        ),
    )  # fmt: skip
    short = "short queue" in faults
    limits = ServerLimits(
        max_waiting=rng.randint(1, 4) if short else 256,
        max_waiting_tokens=rng.choice((30, 200)) if short else 1 << 20,
        max_in_engine=rng.randint(1, 3) if short or rng.random() < 0.3 else 64,
        request_timeout=PATIENCE,
        queue_timeout=rng.choice((0.05, 0.3)) if "impatient queue" in faults else PATIENCE,
        max_unread=rng.choice((2, 5)) if "slow" in faults else 1 << 20,
        write_timeout=0.3 if "slow" in faults else 30.0,
        drain_timeout=rng.choice((0.1, 3.0)),
        stall_unready=1.0,
        stall_kill=4.0,
    )
    tenants = [Client(name, name) for name in ("ada", "ben", "cyd")[: rng.randint(1, 3)]]
    config = ServerConfig(runtime, api_keys=tuple(f"key of {tenant.name}" for tenant in tenants), limits=limits)
    span = rng.choice((0.0, 0.2, 2.0))
    bases = [tuple(rng.randrange(len(VOCAB)) for _ in range(rng.randint(1, 8))) for _ in range(2)]
    visits = tuple(
        _draw_visit(rng, number, faults, rng.choice(tenants), rng.choice(bases), runtime, rng.random() * span)
        for number in range(rng.randint(2, 24))
    )
    stalls = tuple((rng.random() * 2, rng.choice((0.5, 2.0, 6.0))) for _ in range(rng.randint(1, 2)))
    programs: list[tuple[float, ProgramEvent]] = []
    if rng.random() < 0.3:
        tenant = rng.choice(tenants)
        programs = [(0.0, ForkDeclared("p", bases[0], 3, tenant.scope())), (rng.random() * 3, ProgramEnded("p"))]
    return World(
        faults, config,
        # Slow steps where the front dies, so that there is something to do when the next one comes.
        step_seconds=rng.choice((0.03, 0.15) if "front crash" in faults else (0.002, 0.01, 0.03)),
        max_delay=rng.choice((0.001, 0.02, 0.1)),
        visits=visits,
        poison=rng.choice(visits).name if "poison" in faults else "",
        stalls=stalls if "stalls" in faults else (),
        front_dies_at=rng.random() * 1.5 if "front crash" in faults else None,
        drains_at=rng.random() * 2 if "drain" in faults else None,
        programs=tuple(programs),
        flushes_at=rng.random() * 2 if rng.random() < 0.2 else None,
    )  # fmt: skip


def _draw_visit(
    rng: Random,
    number: int,
    faults: frozenset[str],
    client: Client,
    base: tuple[int, ...],
    runtime: RuntimeConfig,
    arrives: float,
) -> Visit:
    name = f"r{number}"
    prompt = base + tuple(rng.randrange(len(VOCAB)) for _ in range(rng.randint(0, 4)))
    kind: Kind = rng.choices(("stream", "whole", "score", "embed"), (5, 4, 2, 1))[0]
    timeout = rng.choice((0.02, 0.2, 1.0)) if "deadlines" in faults and rng.random() < 0.5 else None
    spec: Spec | None = None
    if "refused" in faults and rng.random() < 0.2:
        if rng.random() < 0.5:
            spec = Regex("(")
        else:
            prompt *= 60
    request: Request
    if kind == "score":
        request = ScoreRequest(
            name, prompt, TRIE, unconditional=rng.random() < 0.4, namespace=client.scope(), timeout=timeout,
            priority=rng.randint(0, 1),
        )  # fmt: skip
    elif kind == "embed":
        request = EmbedRequest(name, prompt, timeout)
    else:
        params = SamplingParams(
            max_new_tokens=rng.choice((0, 1, 4, 8, 16)),
            stop=tuple(rng.sample(("é", "aa", "aé", "\ufffd"), rng.choice((0, 0, 1, 2)))),
            stop_token_ids=(2,) if rng.random() < 0.1 else (),
        )
        hints = Hints("p", shared_len=len(base), siblings=3) if rng.random() < 0.2 else Hints()
        request = GenerateRequest(
            name, prompt, params, hints=hints, namespace=client.scope(rng.choice(("", "", "salt"))),
            priority=rng.randint(0, 2), timeout=timeout, constraint=spec,
        )  # fmt: skip
    return Visit(
        request, client, kind, arrives,
        leaves=rng.random() * rng.choice((0.05, 1.0)) if "leaves" in faults and rng.random() < 0.4 else None,
        aborts=rng.random() * rng.choice((0.05, 1.0)) if "leaves" in faults and rng.random() < 0.2 else None,
        pause=rng.choice((0.1, 0.5)) if "slow" in faults and kind == "stream" and rng.random() < 0.5 else 0.0,
    )  # fmt: skip
