"""The wire: everything that crosses comes out equal, and nothing that is not ours comes in."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palmette import errors
from palmette.errors import (
    InvalidOption,
    NumericalError,
    Overloaded,
    PalmetteError,
    PromptTooLong,
    RequestError,
    UnsupportedConstraint,
    UsageError,
)
from palmette.runtime.server import wire
from palmette.runtime.stats import Stats
from palmette.specs import (
    Choices,
    Concat,
    Grammar,
    Healed,
    JsonSchema,
    OneOf,
    Reasoned,
    Regex,
    Repeated,
    SchemaOptions,
    Spec,
    Tag,
    Tagged,
)
from palmette.types import (
    MAX_TOP_LOGPROBS,
    BranchesEnded,
    ChoiceTrie,
    EmbedEvent,
    EmbedRequest,
    Event,
    Finish,
    FinishReason,
    ForkDeclared,
    GenerateRequest,
    Hints,
    LogprobParams,
    ProgramEnded,
    ProgramEvent,
    Request,
    SamplingParams,
    ScoreEvent,
    ScoreRequest,
    TokenEvent,
    TokenLogprob,
    TokenPath,
    Usage,
)

SECRET = bytes(range(32))

TEXT = st.text(max_size=8)  # without lone surrogates
TOKEN = st.integers(0, 1 << 32)
TOKENS = st.lists(TOKEN, max_size=6).map(tuple)
LOGPROB = st.one_of(st.floats(allow_nan=False), st.sampled_from([-math.inf, 0.0, -1e-300]))
TIMEOUT = st.none() | st.floats(0.01, 1e6)


def params() -> st.SearchStrategy[SamplingParams]:
    return st.builds(
        lambda low, more, **kw: SamplingParams(min_new_tokens=low, max_new_tokens=low + more, **kw),
        st.integers(0, 99),
        st.integers(0, 1 << 20),
        temperature=st.floats(0, 100) | st.integers(0, 100),
        top_p=st.floats(0, 1, exclude_min=True),
        top_k=st.just(-1) | st.integers(1, 1 << 40),
        min_p=st.floats(0, 1),
        frequency_penalty=st.floats(-2, 2),
        presence_penalty=st.floats(-2, 2),
        repetition_penalty=st.floats(0.01, 10),
        stop=st.lists(st.text(min_size=1, max_size=4), max_size=3).map(tuple),
        stop_regex=st.lists(st.text(min_size=1, max_size=4), max_size=3).map(tuple),
        stop_token_ids=TOKENS,
        ignore_eos=st.booleans(),
        logit_bias=st.lists(st.tuples(TOKEN, st.floats(-1000, 1000)), max_size=3).map(tuple),
    )


HINTS = st.builds(
    Hints, TEXT, shared_len=st.integers(0, 1 << 31), siblings=st.integers(0, 1 << 31), last_use=st.booleans(),
    critical=st.booleans(),
)  # fmt: skip

PLAIN: st.SearchStrategy[Spec] = st.one_of(
    st.builds(Regex, TEXT),
    st.builds(Choices, st.lists(TEXT, max_size=3).map(tuple)),
    st.builds(JsonSchema, TEXT, st.builds(SchemaOptions, st.booleans(), st.integers(0, 16), st.booleans())),
    st.builds(Grammar, TEXT),
)
MARK = st.text(min_size=1, max_size=3)


def made_of(inner: st.SearchStrategy[Spec]) -> st.SearchStrategy[Spec]:
    parts = st.lists(inner | TEXT, min_size=1, max_size=3).map(tuple)
    tags = st.lists(st.builds(Tag, MARK, st.none() | inner, TEXT), min_size=1, max_size=2).map(tuple)
    return st.one_of(
        st.builds(Concat, parts),
        st.builds(OneOf, parts),
        st.builds(lambda part, low, more: Repeated(part, low, low + more), inner, st.integers(0, 4), st.integers(1, 4)),
        st.builds(Tagged, tags, at_least_one=st.booleans(), stop_after_first=st.booleans()),
        st.builds(Reasoned, MARK, st.none() | inner, st.none() | st.integers(0, 99), TEXT),
        st.builds(Healed, TEXT, st.none() | inner),
    )


SPECS = st.recursive(PLAIN, made_of, max_leaves=4)
REQUESTS: st.SearchStrategy[Request] = st.one_of(
    st.builds(
        GenerateRequest, TEXT, TOKENS | TOKENS.map(lambda ids: TokenPath(TokenPath(None, ids[:2]), ids[2:])), params(),
        st.integers(0, (1 << 64) - 1),
        st.none() | st.builds(LogprobParams, st.none() | st.integers(0, 1 << 30), st.integers(0, MAX_TOP_LOGPROBS)),
        HINTS, TEXT, st.integers(-(1 << 40), 1 << 40), TIMEOUT, st.none() | SPECS,
    ),
    st.builds(
        ScoreRequest, TEXT, TOKENS, st.builds(ChoiceTrie, TOKENS, st.lists(st.integers(-1, 9), max_size=5).map(tuple)),
        st.booleans(), HINTS, TEXT, st.integers(-9, 9), TIMEOUT,
    ),
    st.builds(EmbedRequest, TEXT, TOKENS, TIMEOUT),
)  # fmt: skip
PROGRAMS: st.SearchStrategy[ProgramEvent] = st.one_of(
    st.builds(ForkDeclared, TEXT, TOKENS, st.integers(0, 99), TEXT),
    st.builds(BranchesEnded, TEXT, TOKENS, st.integers(0, 99), TEXT),
    st.builds(ProgramEnded, TEXT),
)
COUNT = st.integers(0, 1 << 40)
USAGE = st.builds(Usage, COUNT, COUNT, COUNT, COUNT, COUNT, COUNT, st.floats(0, 1e6))
TOP = st.lists(st.tuples(TOKEN, LOGPROB), max_size=2).map(tuple)
LOGPROBS = st.lists(st.builds(TokenLogprob, TOKEN, st.none() | LOGPROB, TOP, st.booleans()), max_size=2).map(tuple)
FINISH = st.builds(
    Finish, st.sampled_from(FinishReason), TOKENS, TEXT, st.none() | TEXT | TOKEN, USAGE, LOGPROBS, st.none(),
    st.booleans(), st.lists(TEXT, max_size=2).map(tuple),
)  # fmt: skip
SCORES = st.lists(LOGPROB, max_size=4).map(tuple)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(TokenEvent, TEXT, TEXT, TOKENS, LOGPROBS, st.none() | FINISH),
    st.builds(ScoreEvent, TEXT, SCORES, SCORES, USAGE),
    st.builds(EmbedEvent, TEXT, SCORES, USAGE),
)
ERRORS: list[PalmetteError] = [
    InvalidOption("max_tokens", -1, "an integer"),
    InvalidOption("stop", "\ud800", "Unicode text"),
    InvalidOption("seed", 1 << 80, "64 bits"),
    InvalidOption("logit_bias", {"a": object()}, "plain data"),
    UnsupportedConstraint("/properties/a", "not", "it has no automaton", "leave it out"),
    PromptTooLong(5, 4, "the context"),
    Overloaded(7),
    NumericalError("not finite"),
    errors.HoleTimeout("no result", hole="x"),
    errors.UnknownHole("no hole of this name"),
    errors.UnsupportedFeature("lora", "none is loaded"),
    errors.EngineDied("gone"),
    errors.Cancelled("gone"),
    RequestError("a lone \ud800 in a message"),
]


def to_engine(message: wire.ToEngine) -> wire.ToEngine:
    return wire.read_for_engine(SECRET, wire.to_frames(SECRET, message))


def to_front(step: wire.Step) -> wire.Step:
    return wire.read_for_front(SECRET, wire.to_frames(SECRET, step))


# -- what goes in comes out --------------------------------------------------------------------------------------------


@given(REQUESTS)
@settings(max_examples=200, deadline=None)
def test_a_request_comes_out_equal(request: Request) -> None:
    message = to_engine(wire.request_to_wire(request))
    assert isinstance(message, wire.Generate | wire.Score | wire.Embed)
    got = wire.request_of(message)
    assert type(got) is type(request)
    assert got == request
    assert isinstance(got.token_ids, tuple)


@given(PROGRAMS)
@settings(max_examples=50, deadline=None)
def test_a_program_event_comes_out_equal(event: ProgramEvent) -> None:
    message = to_engine(wire.program_to_wire(event))
    assert isinstance(message, wire.Fork | wire.Branches | wire.End)
    assert wire.program_of(message) == event


@pytest.mark.parametrize("message", [wire.Cancel("r"), wire.Flush(), wire.Reset()])
def test_an_order_comes_out_equal(message: wire.ToEngine) -> None:
    assert to_engine(message) == message


@given(st.lists(EVENTS, max_size=4))
@settings(max_examples=200, deadline=None)
def test_events_come_out_equal(events: list[Event]) -> None:
    stats = Stats(*range(15))
    step = to_front(wire.Step(tuple(map(wire.event_to_wire, events)), stats))
    assert [wire.event_of(event) for event in step.events] == events
    assert step.stats == stats


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", [TokenEvent, ScoreEvent, EmbedEvent])
def test_an_error_comes_out_as_its_own_class_with_its_message_and_plain_fields(
    error: PalmetteError, kind: type[Event]
) -> None:
    event: Event = kind("r", error=error) if kind is not TokenEvent else TokenEvent("r")  # type: ignore[call-arg]
    if isinstance(event, TokenEvent):
        event = replace(event, finish=Finish(FinishReason.FAILED, error=error))
    (sent,) = to_front(wire.Step((wire.event_to_wire(event),))).events
    got_event = wire.event_of(sent)
    got = got_event.finish.error if isinstance(got_event, TokenEvent) and got_event.finish else None
    if not isinstance(got_event, TokenEvent):
        got = got_event.error
    assert type(got) is type(error)
    assert str(got) == str(error).encode("utf-8", "backslashreplace").decode()
    for name, value in vars(error).items():
        is_plain = isinstance(value, str) and value.isprintable()
        if is_plain or (isinstance(value, int) and abs(value) < 1 << 63):
            assert getattr(got, name) == value
    with pytest.raises(type(error)):
        raise got  # it is a whole exception


def test_every_error_of_the_tree_keeps_its_class() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        error: PalmetteError = kind.__new__(kind)
        Exception.__init__(error, "said")
        got = wire.error_of(
            msgspec.msgpack.decode(msgspec.msgpack.encode(wire.error_to_wire(error)), type=wire.WireError)
        )
        assert type(got) is kind
        assert str(got) == "said"


def test_an_error_of_a_class_made_elsewhere_arrives_as_the_nearest_of_ours() -> None:
    class Special(NumericalError):
        pass

    sent = wire.error_to_wire(Special("nan"))
    assert type(wire.error_of(sent)) is NumericalError


def test_a_cause_stays_behind() -> None:
    error = RequestError("failed")
    error.__cause__ = OSError("/a/path")
    got = wire.error_of(wire.error_to_wire(error))
    assert got is not None
    assert got.__cause__ is None


# -- what cannot cross is the sender's error ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest("r", (1,), SamplingParams(stop=("\ud800",))),
        GenerateRequest("r", (1,), namespace="tenant/\udfff"),
        GenerateRequest("r", (1,), hints=Hints(program="\ud800")),
        GenerateRequest("r", (1,), constraint=Regex("[\ud800]")),
        GenerateRequest("r", (1 << 70,)),
        GenerateRequest("r", (1,), priority=1 << 70),
        GenerateRequest("r", (1,), SamplingParams(stop_token_ids=(1 << 70,))),
        GenerateRequest("r", (1,), seed=1 << 64),
        EmbedRequest("r", (-(1 << 70),)),
    ],
    ids=str,
)
def test_a_text_or_number_that_nothing_can_write_is_refused_where_it_is_sent(request_: Request) -> None:
    with pytest.raises(InvalidOption, match="surrogates"):
        wire.to_frames(SECRET, wire.request_to_wire(request_))


# -- what is not ours --------------------------------------------------------------------------------------------------

GOOD = wire.to_frames(SECRET, wire.Cancel("r"))[1]


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [GOOD],
        [SECRET],
        [GOOD, SECRET],
        [b"", GOOD],
        [SECRET[:-1], GOOD],
        [SECRET + b"\0", GOOD],
        [SECRET[::-1], GOOD],
        [SECRET, GOOD, b""],
        [SECRET, GOOD, GOOD],
    ],
    ids=range(10),
)
def test_frames_without_the_secret_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(wire.BadMessage, match="secret"):
        wire.read_for_engine(SECRET, frames)
    with pytest.raises(wire.BadMessage, match="secret"):
        wire.read_for_front(SECRET, frames)


@given(REQUESTS, st.data())
@settings(max_examples=100, deadline=None)
def test_a_message_that_was_cut_is_refused(request: Request, data: st.DataObject) -> None:
    _, body = wire.to_frames(SECRET, wire.request_to_wire(request))
    cut = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(wire.BadMessage, match="none of ours"):
        wire.read_for_engine(SECRET, [SECRET, body[:cut]])


@given(st.binary(max_size=64))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_message_or_refused(body: bytes) -> None:
    for read in (wire.read_for_engine, wire.read_for_front):
        try:
            message = read(SECRET, [SECRET, body])
        except wire.BadMessage:
            continue
        assert isinstance(message, wire.ToEngine | wire.Step)


@given(REQUESTS, st.data())
@settings(max_examples=200, deadline=None)
def test_a_message_with_a_wrong_byte_is_a_message_or_refused(request: Request, data: st.DataObject) -> None:
    """What decodes has passed the checks of its types: it can become a request, or says why not."""
    _, body = wire.to_frames(SECRET, wire.request_to_wire(request))
    at = data.draw(st.integers(0, len(body) - 1))
    wrong = body[:at] + bytes([data.draw(st.integers(0, 255))]) + body[at + 1 :]
    try:
        message = wire.read_for_engine(SECRET, [SECRET, wrong])
    except wire.BadMessage:
        return
    if isinstance(message, wire.Generate | wire.Score | wire.Embed):
        try:
            wire.request_of(message)
        except PalmetteError:
            return


def test_a_message_that_is_too_long_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_MESSAGE", 10)
    with pytest.raises(wire.BadMessage, match="a message of 11 bytes"):
        wire.read_for_engine(SECRET, [SECRET, b"\xc1" * 11])


def test_a_message_in_the_wrong_direction_is_refused() -> None:
    step = wire.to_frames(SECRET, wire.Step(()))
    with pytest.raises(wire.BadMessage):
        wire.read_for_engine(SECRET, step)
    with pytest.raises(wire.BadMessage):
        wire.read_for_front(SECRET, wire.to_frames(SECRET, wire.Reset()))


def alien(**changes: Any) -> list[bytes]:
    """A Generate message as somebody else would write it."""
    message = wire.request_to_wire(GenerateRequest("r", (1, 2)))
    data: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    return [SECRET, msgspec.msgpack.encode({**data, **changes})]


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "Pickle"},
        {"type": "os.system"},
        {"type": None},
        {"id": 7},
        {"tokens": ["a"]},
        {"tokens": [1.5]},
        {"params": {"temperature": -1.0}},
        {"params": {"temperature": math.nan}},
        {"params": {"max_new_tokens": -5}},
        {"params": {"stop": [""]}},
        {"logprobs": {"top": 1000}},
        {"hints": 5},
        {"timeout": "soon"},
        {"constraint": "Regex"},
    ],
    ids=str,
)
def test_a_message_with_alien_parts_is_refused(changes: dict[str, Any]) -> None:
    assert isinstance(wire.read_for_engine(SECRET, alien()), wire.Generate)
    with pytest.raises(wire.BadMessage, match="none of ours"):
        wire.read_for_engine(SECRET, alien(**changes))


@pytest.mark.parametrize(
    "constraint",
    [{"spec": "Path"}, {"spec": "__import__"}, {}, {"spec": "Tag", "begin": "a", "content": None}, {"spec": 5}],
)
def test_a_constraint_names_nothing_outside_the_table(constraint: dict[str, Any]) -> None:
    message = wire.read_for_engine(SECRET, alien(constraint=constraint))
    assert isinstance(message, wire.Generate)
    with pytest.raises(UsageError):
        wire.request_of(message)


@pytest.mark.parametrize(
    "kind",
    ["SystemExit", "KeyboardInterrupt", "os.system", "builtins.eval", "BadMessage", "object", "__class__", "", "Any"],
)
def test_an_error_names_no_class_outside_the_table(kind: str) -> None:
    got = wire.error_of(wire.WireError(kind, "said", {"retry_after": 3}))
    assert type(got) is RequestError
    assert str(got) == "said"


def test_fields_of_an_error_reach_nothing_but_its_own_attributes() -> None:
    got = wire.error_of(wire.WireError("Overloaded", "busy", {"__class__": "x", "__dict__": "x", "args": "x"}))
    assert type(got) is Overloaded
    assert got.args == ("busy",)
    assert str(got) == "busy"
