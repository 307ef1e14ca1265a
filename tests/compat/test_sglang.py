"""Programs as they are written for SGLang, run unchanged."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest

import palmette
import palmette.compat.sglang as sgl
from palmette.compat.sglang.lang import api, choices, interpreter, ir
from palmette.testing import ScriptedBackend


def echo(prompt: str) -> str:
    """The reply to a prompt is its last letter, twice."""
    return prompt.strip()[-1] * 2


def test_every_public_name_is_found_below_sglangs_paths() -> None:
    for name in palmette.__all__:
        assert getattr(sgl, name) is getattr(palmette, name)
        assert getattr(api, name) is getattr(palmette, name)
        assert name in sgl.__all__


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        sgl.no_such_name  # noqa: B018
    with pytest.raises(AttributeError, match="no_such_name"):
        api.no_such_name  # noqa: B018


def test_sglangs_module_paths_exist() -> None:
    for path, names in {
        "lang.ir": ("REGEX_INT", "REGEX_FLOAT", "REGEX_BOOL", "REGEX_STR", "SglFunction", "SglGen", "SglSelect"),
        "lang.choices": ("ChoicesDecision", "ChoicesSamplingMethod", "token_length_normalized"),
        "lang.interpreter": ("ProgramState", "ProgramStateGroup"),
        "lang.api": ("function", "gen", "select", "system", "user", "assistant"),
    }.items():
        module = importlib.import_module(f"palmette.compat.sglang.{path}")
        assert all(hasattr(module, name) for name in names)


@pytest.mark.parametrize(
    ("pattern", "accepted", "refused"),
    [
        (ir.REGEX_INT, ["1", "-20", "+3 \n"], ["", "1.5", "a"]),
        (ir.REGEX_FLOAT, ["1", "-2.5", ".5 "], ["", "5.", "a"]),
        (ir.REGEX_BOOL, ["True", "False"], ["true", ""]),
        (ir.REGEX_STR, ['"a b 1"', '""'], ["a", '"']),
    ],
)
def test_the_regular_expressions_behind_dtype(pattern: str, accepted: list[str], refused: list[str]) -> None:
    assert all(re.fullmatch(pattern, text) for text in accepted)
    assert not any(re.fullmatch(pattern, text) for text in refused)


@sgl.function
def multi_turn(s: Any, question_1: str, question_2: str) -> None:
    s += sgl.system("You are a helpful assistant.")
    s += sgl.user(question_1)
    s += sgl.assistant(sgl.gen("answer_1", max_tokens=256))
    s += sgl.user_begin() + question_2 + sgl.user_end()
    s += sgl.assistant_begin()
    s += sgl.gen("answer_2", max_tokens=256)
    s += sgl.assistant_end()


def test_a_conversation_and_its_messages() -> None:
    backend = ScriptedBackend(["one", "two"])
    state = multi_turn.run(question_1="a", question_2="b", backend=backend, temperature=0.7)
    assert isinstance(state, interpreter.ProgramState)
    assert [(m["role"], m["content"]) for m in state.messages()] == [
        ("system", "You are a helpful assistant."),
        ("user", "a"),
        ("assistant", "one"),
        ("user", "b"),
        ("assistant", "two"),
    ]
    assert state["answer_2"] == "two"


@sgl.function
def parallel(s: Any, topic: str) -> None:
    s += "Tips on " + topic + ":"
    forks = s.fork(2)
    assert isinstance(forks, interpreter.ProgramStateGroup)
    for i, f in enumerate(forks):
        f += f" tip {i}"
        f += sgl.gen("detail", max_tokens=8, stop=["\n"])
    s += "1" + forks[0]["detail"] + "2" + forks[1]["detail"]


def test_forks_that_are_read_and_never_joined() -> None:
    sgl.set_default_backend(ScriptedBackend(echo))
    try:
        state = parallel.run(topic="health", temperature=0)
    finally:
        sgl.set_default_backend(None)
    assert state.text() == "Tips on health:100211"


@sgl.function
def pair(s: Any, a: str, b: str) -> None:
    s += a + "-" + b + sgl.gen("x", max_tokens=4)


@pytest.mark.parametrize(
    "batch",
    [
        [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}],
        [("1", "2"), ("3", "4")],
        [["1", "2"], ["3", "4"]],
    ],
    ids=["dicts", "tuples", "lists"],
)
def test_a_batch_takes_dicts_tuples_and_lists_of_positional_arguments(batch: list[Any]) -> None:
    states = pair.run_batch(batch, backend=ScriptedBackend(echo), num_threads=2, progress_bar=False)
    assert [state.text() for state in states] == ["1-222", "3-444"]
    assert batch == [type(batch[0])(item) for item in batch]


def test_in_map_a_list_is_the_one_argument() -> None:
    @sgl.function
    def joined(s: Any, words: list[str]) -> str:
        s += ",".join(words) + sgl.gen("x")
        value: str = s["x"]
        return value

    backend = ScriptedBackend(echo)
    assert joined.map([["a", "b"], ["c"]], backend=backend) == ["bb", "cc"]
    assert joined.run_batch([[["a", "b"]], (["c"],)], backend=backend)[0]["x"] == "bb"


def test_a_choice_and_its_meta_info() -> None:
    @sgl.function
    def tool_use(s: Any, question: str) -> None:
        s += question + sgl.gen("tool", choices=["calc", "search"], choices_method=sgl.greedy_token_selection)

    def score(prompt: str, token: str) -> float:
        return -0.1 if token in "search" else -5.0

    state = tool_use.run("why?", backend=ScriptedBackend(score=score))
    assert state["tool"] == "search"
    assert state.text() == "why?search"
    assert isinstance(choices.greedy_token_selection, choices.ChoicesSamplingMethod)


def test_streaming_and_tracing_as_in_sglang() -> None:
    state = pair.run("1", "2", stream=True, backend=ScriptedBackend(echo))
    assert "".join(state.text_iter()) == "1-222"
    assert "".join(state.text_iter("x")) == "22"
    assert [type(node).__name__ for node in pair.trace(backend=None).nodes] == ["Argument", "Text", "Argument", "Gen"]


CHARACTER = (
    r"""\{\n"""
    r"""    "name": "[\w\d\s]{1,16}",\n"""
    r"""    "house": "(Gryffindor|Slytherin|Ravenclaw|Hufflepuff)",\n"""
    r"""    "alive": (true|false)\n"""
    r"""\}"""
)


@sgl.function
def character(s: Any, name: str) -> None:
    s += name + " is a character. Fill in:\n" + sgl.gen("json", max_tokens=256, regex=CHARACTER)


def test_a_regex_that_writes_json() -> None:
    written = '{\n    "name": "Harry",\n    "house": "Gryffindor",\n    "alive": true\n}'
    state = character.run(name="Harry", backend=ScriptedBackend([written]))
    assert state["json"] == written
    with pytest.raises(palmette.RequestError, match="does not satisfy"):
        character.run(name="Harry", backend=ScriptedBackend(['{"name": "Harry"}']))


@sgl.function
def numbers(s: Any) -> None:
    s += "n: " + sgl.gen("n", dtype=int, stop="\n") + " x: " + sgl.gen("x", dtype="float")
    s += " yes: " + sgl.gen("yes", dtype=bool) + " s: " + sgl.gen_string("s") + " i: " + sgl.gen_int("i")


def test_dtypes_give_text() -> None:
    state = numbers.run(backend=ScriptedBackend(["-3 and", "1.5\n", "True", '"a b"', "7"]))
    assert [state[name] for name in ("n", "x", "yes", "s", "i")] == ["-3", "1.5", "True", '"a b"', "7"]
    assert state.text() == 'n: -3 x: 1.5 yes: True s: "a b" i: 7'


def test_a_json_schema_as_text_gives_text() -> None:
    @sgl.function
    def capital(s: Any) -> None:
        s += "Capital of France:" + sgl.gen("out", json_schema=schema, max_tokens=64)

    schema = '{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}'
    assert capital.run(backend=ScriptedBackend(['{"name": "Paris"}']))["out"] == '{"name": "Paris"}'
