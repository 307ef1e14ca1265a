"""Token healing: what is taken back, what stays, and that texts and tokens go on agreeing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import palmette as pm
from palmette.interpreter.backends.local import Runtime
from palmette.runtime.models.tiny import tiny_model
from palmette.specs import Healed, Reasoned
from palmette.testing import ScriptedBackend
from palmette.types import GenerateRequest

EXTRA = (b"://", b"http", b" is", "é!".encode(), b"\n\n", b" a", b"the")


@pm.function
def go_on(s: pm.State, text: str, **options: Any) -> None:
    s += text + pm.gen("x", token_healing=True, **options) + ";"


def asked(backend: ScriptedBackend, index: int = -1) -> GenerateRequest:
    request = backend.requests[index]
    assert isinstance(request, GenerateRequest)
    return request


def test_the_last_token_before_the_hole_is_given_back() -> None:
    backend = ScriptedBackend({"http:": "//x.org"}, piece=2)
    state = go_on.run("see http:", max_tokens=9, min_tokens=2, backend=backend)
    request = asked(backend)
    assert bytes(request.token_ids) == b"see http"
    assert request.constraint == Healed(":", None)
    assert (request.params.max_new_tokens, request.params.min_new_tokens) == (10, 3)
    assert state["x"] == state.text_of("x") == "".join(state.text_iter("x")) == "//x.org"
    assert state.text() == "see http://x.org;"
    assert bytes(state.token_ids()) == b"see http://x.org"
    assert state.usage.retokenized_tokens == 0  # the token that was taken back came first again


def test_a_constraint_is_that_of_the_text_behind_the_prefix() -> None:
    backend = ScriptedBackend(["42 "])
    state = go_on.run("n = ", type=int, backend=backend)
    assert (state["x"], state.text()) == (42, "n = 42;")
    constraint = asked(backend).constraint
    assert isinstance(constraint, Healed)
    assert constraint.prefix == " "
    assert asked(backend).params.stop == ()  # a space would end the hole with its prefix
    assert go_on.run("n = ", regex="[a-c]+", backend=ScriptedBackend(["abc"]))["x"] == "abc"


def test_reasoning_stands_behind_the_prefix() -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "q: " + pm.separate_reasoning(pm.gen("x", regex="a+", thinking_budget=9, token_healing=True))

    backend = ScriptedBackend(["<think>hm</think>\n\naa"])
    state = program.run(backend=backend)
    assert (state["x"], state["x_reasoning_content"]) == ("aa", "hm")
    constraint = asked(backend).constraint
    assert isinstance(constraint, Healed)
    assert isinstance(constraint.content, Reasoned)
    assert state.text() == "q: <think>hm</think>\n\naa"


def test_only_text_that_nobody_generated_is_taken_back() -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "a" + pm.gen("x") + pm.gen("y") + "b" + pm.gen("z")

    backend = ScriptedBackend(["1", "2", "3"])
    state = program.run(token_healing=True, backend=backend)
    constraints = [request.constraint for request in backend.requests if isinstance(request, GenerateRequest)]
    # "a" is all there is: a prompt has a token. Behind x nothing is pending.
    assert constraints == [None, None, Healed("b")]
    assert state.text() == "a12b3"


def test_template_text_is_never_taken_back() -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += pm.user("hello") + pm.assistant(pm.gen("x")) + pm.user("so") + pm.assistant("Well, " + pm.gen("y"))

    backend = ScriptedBackend(["1", "2"])
    state = program.run(token_healing=True, backend=backend)
    assert asked(backend, 0).constraint is None
    assert asked(backend, 1).constraint == Healed(" ")
    assert [m["content"] for m in state.messages()] == ["hello", "1", "so", "Well, 2"]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("a\n", {"stop": "\n"}),  # it would stop at once
        ("a\n", {"stop": ["x", "\n\n"]}),  # it may stop with what the author wrote
        ("a\n", {"stop_regex": "[0-9]x"}),
        ("a:", {"stop_token_ids": [ord(":")]}),
        ("a:", {"max_tokens": 0}),
    ],
)
def test_a_seam_that_could_end_the_hole_is_left_alone(text: str, options: dict[str, Any]) -> None:
    backend = ScriptedBackend(["" if "max_tokens" in options else "b"])
    go_on.run(text, backend=backend, **options)
    assert asked(backend).constraint is None
    assert bytes(asked(backend).token_ids) == text.encode()


def test_a_character_is_taken_back_whole() -> None:
    backend = ScriptedBackend(["!"])
    assert go_on.run("café", backend=backend).text() == "café!;"
    assert asked(backend).constraint == Healed("é")
    assert bytes(asked(backend).token_ids) == b"caf"


def test_a_scope_and_a_failed_hole_keep_the_text() -> None:
    @pm.function
    def scoped(s: pm.State) -> None:
        s += "see http:"
        with s.var_scope("v"):
            s += pm.gen("x") + "."

    assert scoped.run(token_healing=True, backend=ScriptedBackend(["//"]))["v"] == "//."

    @pm.function
    def failing(s: pm.State) -> None:
        s += "see http:" + pm.gen("x", timeout=0.05)

    with pytest.raises(pm.HoleTimeout) as caught:
        failing.run(token_healing=True, backend=ScriptedBackend(manual=True))
    assert caught.value.state.text() == "see http:"


def test_a_backend_that_cannot_is_told_so() -> None:
    backend = ScriptedBackend(["a"], constraints=("regex",))
    with pytest.raises(pm.UnsupportedConstraint, match="token_healing"):
        go_on.run("a b", backend=backend)
    with pytest.raises(pm.UnsupportedConstraint, match="token_healing"), pm.options(token_healing=True):
        pm.function(lambda s: s.__iadd__("a b" + pm.gen("x"))).run(backend=backend)
    assert backend.requests == []
    with pytest.raises(pm.InvalidOption, match="token_healing"):
        pm.gen("x", token_healing=3)  # type: ignore[arg-type]


# -- on the engine -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime(tiny_model(extra_tokens=EXTRA), kv_tokens=1 << 14) as runtime:
        yield runtime


def test_a_longer_token_may_take_the_place_of_the_last(runtime: Runtime) -> None:
    tokenizer = runtime.get_tokenizer()
    (slashes,) = tokenizer.encode("://")
    state = go_on.run("see http:", max_tokens=6, temperature=0, logit_bias={slashes: 100.0}, backend=runtime)
    assert state.token_ids()[len("see ") :][:2] == (*tokenizer.encode("http"), slashes)
    assert state["x"].startswith("//")
    assert state.usage.retokenized_tokens == 1
    assert state.get_meta_info("x")["retokenized_tokens"] == 1


@given(text=st.text("ab:/ ité!\n", min_size=2, max_size=12), seed=st.integers(0, 1000), n=st.integers(1, 12))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_text_and_tokens_agree_whatever_is_healed(runtime: Runtime, text: str, seed: int, n: int) -> None:
    for options in ({}, {"regex": "[a-z:/]{1,6}"}, {"stop": ":"}):
        needed = 6 if "regex" in options else n
        state = go_on.run(text, max_tokens=needed, temperature=1.5, seed=seed, backend=runtime, **options)
        written = state.text()
        assert written == f"{text}{state['x']};"
        assert "".join(state.text_iter("x")) == state["x"]
        assert written.startswith(runtime.decode(state.token_ids()))
        if "regex" in options:
            assert 1 <= len(state["x"]) <= 6


def test_the_reply_may_be_as_long_as_without(runtime: Runtime) -> None:
    state = go_on.run("see", max_tokens=5, temperature=1.0, seed=3, regex="[a-z]{5}", backend=runtime)
    assert len(state["x"]) == 5


@pytest.mark.model
def test_the_embedded_model_goes_on_with_a_link() -> None:
    with Runtime("smollm2") as runtime:
        state = go_on.run("The link is http:", max_tokens=4, temperature=0, backend=runtime)
        assert state["x"].startswith("//")
        ids = runtime.get_tokenizer().encode("The link is http://")
        assert list(state.token_ids()[: len(ids)]) == ids
        # A space at the end of a prompt: as it stands no word can follow, since words bring their own.
        state = go_on.run("The capital of France is ", max_tokens=3, temperature=0, backend=runtime)
        assert state["x"].startswith("Paris")
        assert state.usage.retokenized_tokens == 1
