"""Reasoning in front of an answer that is held to a form: what is asked for, what comes back, how it streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel

import palmette as pm
from palmette.ir import dumps, loads
from palmette.specs import Concat, Reasoned, Regex
from palmette.testing import Reply, ScriptedBackend, tiny_runtime
from palmette.types import GenerateRequest


class Person(BaseModel):
    name: str
    age: int


@pm.function
def think(s: pm.State, prompt: str = "q", model_type: str = "qwen3", **options: Any) -> None:
    s += prompt + pm.separate_reasoning(pm.gen("x", **options), model_type) + "!"


def asked(backend: ScriptedBackend) -> GenerateRequest:
    (request,) = backend.requests
    assert isinstance(request, GenerateRequest)
    return request


ADA = '{"name": "Ada", "age": 36}'


def test_a_value_comes_behind_the_reasoning() -> None:
    backend = ScriptedBackend([f"<think>\nwho? \n Ada.\n</think>\n\n{ADA}"])
    state = think.run(type=Person, backend=backend)
    assert state["x"] == Person(name="Ada", age=36)
    assert state.text_of("x") == ADA
    assert state["x_reasoning_content"] == "who? \n Ada.\n"
    assert state.text() == f"q<think>\nwho? \n Ada.\n</think>\n\n{ADA}!"
    constraint = asked(backend).constraint
    assert isinstance(constraint, Reasoned)
    assert (constraint.begin, constraint.end, constraint.budget) == ("<think>", "</think>", None)


def test_both_stream() -> None:
    state = think.run(type=Person, stream=True, backend=ScriptedBackend([f"<think>hm</think>\n\n{ADA}"], piece=3))
    assert list(state.stream("x")) == [{"name": "Ada"}, {"name": "Ada", "age": 36}, Person(name="Ada", age=36)]
    assert "".join(state.text_iter("x")) == ADA
    assert "".join(state.stream("x_reasoning_content")) == "hm"


@pytest.mark.parametrize("opening", ["<think>", "<think>\n"])
def test_a_prompt_that_opened_the_reasoning_is_gone_on_with(opening: str) -> None:
    backend = ScriptedBackend(["why</think>\n\nab"])
    state = think.run(prompt=f"q{opening}", regex="a+b", backend=backend)
    assert (state["x"], state["x_reasoning_content"]) == ("ab", "why")
    assert asked(backend).constraint == Reasoned("</think>", Concat(("\n\n", Regex("a+b"))))


def test_a_free_answer_behind_an_opened_mark_is_split_too() -> None:
    state = think.run(prompt="q<think>\n", backend=ScriptedBackend(["why</think>so"]))
    assert (state["x"], state["x_reasoning_content"]) == ("so", "why")


def test_a_prompt_that_closed_the_reasoning_leaves_none_to_come() -> None:
    backend = ScriptedBackend(["ab"])
    state = think.run(prompt="q<think>\n\n</think>\n\n", regex="a+b", backend=backend)
    assert (state["x"], state["x_reasoning_content"]) == ("ab", "")
    assert asked(backend).constraint == Regex("a+b")


def test_line_breaks_of_the_answer_stay() -> None:
    state = think.run(regex=r"\n*a", backend=ScriptedBackend(["<think>x</think>\n\n\n\na"], piece=1))
    assert state["x"] == "\n\na"
    assert "".join(think.run(regex=r"\n*a", stream=True, backend=ScriptedBackend(["<think>x</think>\n\n\na"], piece=2))
                   .text_iter("x")) == "\na"  # fmt: skip


@pytest.mark.parametrize(
    ("type_", "answer", "value"),
    [(int, "42", 42), (float, "1.5", 1.5), (Literal["no", "no way"], "no", "no"), (bool, "true", True)],
)
@pytest.mark.parametrize("end", ["", "\n"])
def test_a_space_in_the_reasoning_does_not_end_a_number(type_: Any, answer: str, value: Any, end: str) -> None:
    end = "" if type_ is bool else end
    backend = ScriptedBackend([f"<think>1 or 2?\n No. </think>\n\n{answer}{end}"])
    state = think.run(type=type_, backend=backend)
    assert state["x"] == value
    assert state.text() == f"q<think>1 or 2?\n No. </think>\n\n{answer}!"
    assert "".join(state.text_iter("x")) == answer
    assert asked(backend).params.stop == ()
    assert state.get_meta_info("x")["finish_reason"] == {"type": "stop", "matched": end or None}


def test_what_is_shown_of_the_whole_text_is_what_stays() -> None:
    state = think.run(type=int, backend=ScriptedBackend(["<think>a b</think>\n\n42 "]), stream=True)
    assert "".join(state.text_iter()) == "q<think>a b</think>\n\n42!" == state.text()
    assert state.usage.wasted_tokens == 1


def test_every_sample_has_its_reasoning() -> None:
    backend = ScriptedBackend(["<think>a</think>\n\n1", "<think>b</think>\n\n2"])
    state = think.run(type=int, n=2, backend=backend)
    assert state["x"] == [1, 2]
    assert state["x_reasoning_content"] == ["a", "b"]


def test_a_value_that_the_budget_closed_is_truncated() -> None:
    backend = ScriptedBackend(lambda p: Reply(f"<think>a</think>\n\n{ADA}", steered=True))
    with pytest.raises(pm.Truncated) as caught:
        think.run(type=Person, backend=backend)
    assert caught.value.text == ADA
    assert caught.value.partial == {"name": "Ada", "age": 36}
    assert think.run(type=Person, on_budget="close", backend=backend)["x"].age == 36


def test_a_thinking_budget_crosses_the_seam_with_any_hole() -> None:
    for options in ({}, {"regex": "ab"}):
        backend = ScriptedBackend(["<think>a</think>\n\nab"])
        assert think.run(thinking_budget=7, backend=backend, **options)["x"] == "ab"
        constraint = asked(backend).constraint
        assert isinstance(constraint, Reasoned)
        assert constraint.budget == 7


def test_a_runs_thinking_budget_is_for_holes_that_reason() -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "q" + pm.gen("a") + pm.separate_reasoning(pm.gen("b"))

    backend = ScriptedBackend(["free", "<think>a</think>b"])
    with pm.options(thinking_budget=5):
        program.run(backend=backend)
    first, second = backend.requests
    assert isinstance(first, GenerateRequest)
    assert isinstance(second, GenerateRequest)
    assert (first.constraint, second.constraint) == (None, Reasoned("</think>", None, 5, "<think>"))


def test_what_cannot_be_is_refused_before_a_token_is_paid_for() -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += "q" + pm.gen("x", thinking_budget=5)

    with pytest.raises(pm.InvalidOption, match="separate_reasoning"):
        program.run(backend=ScriptedBackend(["a"]))
    with pytest.raises(pm.InvalidOption, match="thinking_budget"):
        pm.gen("x", thinking_budget=-1)
    bare = ScriptedBackend(["a"], constraints=("regex",))
    for options in ({"regex": "a"}, {"thinking_budget": 0}):
        with pytest.raises(pm.UnsupportedConstraint, match="does not enforce it"):
            think.run(backend=bare, **options)
    assert bare.requests == []


def test_a_stop_string_looks_at_the_whole_text() -> None:
    with pytest.raises(pm.Truncated, match="cut the value"):
        think.run(type=int, stop="wait", backend=ScriptedBackend(["<think>but wait</think>\n\n4"]))


def test_a_reasoned_hole_comes_back_from_the_ir() -> None:
    graph = think.trace(type=int, thinking_budget=3).graph
    assert loads(dumps(graph), types={"int": int}) == graph


# -- on the engine -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runtime() -> Iterator[pm.Runtime]:
    with tiny_runtime(kv_tokens=1 << 14) as runtime:
        yield runtime


@pytest.mark.parametrize("model_type", ["qwen3", "deepseek-r1", "kimi", "magistral"])
@pytest.mark.parametrize("options", [{"type": int}, {"type": Literal["a", "b"]}, {"regex": "x[0-9]"}, {"dtype": int}])
def test_a_model_without_sense_thinks_within_its_budget_and_answers(
    runtime: pm.Runtime, model_type: str, options: dict[str, Any]
) -> None:
    for seed in range(3):
        state = think.run(
            model_type=model_type, thinking_budget=6, max_tokens=60, temperature=1.5, seed=seed, on_budget="close",
            backend=runtime, **options,
        )  # fmt: skip
        assert len(state["x_reasoning_content"].encode()) <= 6
        if "type" in options:
            assert state["x"] in ("a", "b") or isinstance(state["x"], int)
        else:
            assert state["x"].lstrip("+-x").isdigit()
        assert "".join(state.text_iter("x")) == state.text_of("x")
        assert state.text().endswith(state.text_of("x") + "!")


def test_reasoning_takes_its_place_from_max_tokens_and_the_answer_comes_all_the_same(runtime: pm.Runtime) -> None:
    state = think.run(regex="[ab]{5}", max_tokens=30, temperature=1.0, seed=1, backend=runtime)
    assert len(state["x"]) == 5
    assert state.get_meta_info("x")["completion_tokens"] <= 30
    with pytest.raises(pm.RequestError, match="shortest text"):
        think.run(regex="[ab]{5}", max_tokens=10, backend=runtime)
