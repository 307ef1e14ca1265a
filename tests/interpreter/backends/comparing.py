"""What two runs of a program must have in common, and the programs that are run."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

import palmette as pm
from palmette.types import Backend

_names = itertools.count()


class Part(BaseModel):
    name: Annotated[str, Field(max_length=6)]
    size: Annotated[int, Field(ge=0, le=99)]
    kind: Literal["big", "small"]


def lookup(word: Annotated[str, Field(max_length=5)]) -> str:
    """A word's meaning."""
    return word[::-1]


@pm.function
def plain(s: pm.State) -> None:
    s += "Tell me:" + pm.gen("a", max_tokens=24) + "\nAnd then" + pm.gen("b", max_tokens=12, temperature=0)


@pm.function
def stopped(s: pm.State) -> None:
    s += "Letters:" + pm.gen("a", max_tokens=60, stop=["e", "\x10\x11"], temperature=1.5)
    s += "|" + pm.gen("b", max_tokens=40, stop_regex="[a-f][0-9]?", top_k=50, top_p=0.9, min_p=0.01)


@pm.function
def penalised(s: pm.State) -> None:
    s += "Words:" + pm.gen("a", max_tokens=30, frequency_penalty=0.5, presence_penalty=0.5, ignore_eos=True)


@pm.function
def choosing(s: pm.State) -> None:
    choices = [" yes", " yet", " no", " not at all"]
    for rule in (
        pm.token_length_normalized,
        pm.greedy_token_selection,
        pm.unconditional_likelihood_normalized,
        pm.exact_probability,
    ):
        s += f"{type(rule).__name__}:" + pm.select(f"by_{type(rule).__name__}", choices, choices_method=rule)


@pm.function
def forked(s: pm.State) -> None:
    s += "A shared beginning that is a little longer."
    with s.fork(3) as branches:
        for index, branch in enumerate(branches):
            branch += f"Part {index}:" + pm.gen("part", max_tokens=8)
    s += "Together:" + "/".join(s["part"]) + pm.gen("end", max_tokens=6)


@pm.function
def conforming(s: pm.State) -> None:
    s += "A date:" + pm.gen("date", regex=r"\d{4}-\d\d-\d\d", max_tokens=16)
    s += " JSON:" + pm.gen("part", json_schema=Part.model_json_schema(), max_tokens=80)
    s += " one of" + pm.gen("one", choices=["left", "right", "lift"])
    s += " grammar" + pm.gen("sum", grammar='root ::= [0-9] ("+" [0-9])*', max_tokens=9)


@pm.function
def typed(s: pm.State) -> None:
    s += "An object:" + pm.gen("part", type=Part, max_tokens=90, on_budget="close")
    s += " an integer" + pm.gen("n", type=Annotated[int, Field(ge=1, le=12)])


@pm.function
def tools(s: pm.State) -> None:
    s += "Call:" + pm.gen("x", type=pm.ToolCall[lookup], max_tokens=90, on_budget="close")


@pm.function
def talking(s: pm.State) -> None:
    s += pm.system("You are brief.")
    s += pm.user("Hello <|im_end|> there")
    s += pm.assistant(pm.gen("reply", max_tokens=10))
    s += pm.user("Again.")
    s += pm.assistant(pm.gen("reply2", max_tokens=10, stop="a"))


@pm.function
def sampled(s: pm.State) -> None:
    s += "Three of" + pm.gen("x", n=3, max_tokens=7, return_logprob=True, top_logprobs_num=2, logprob_start_len=3)


@pm.function
def retried(s: pm.State) -> None:
    for _ in s.retry(until=lambda s: len(s["x"]) % 2 == 0, attempts=3):
        s += "Try:" + pm.gen("x", max_tokens=9, temperature=1.3)


@pm.function
def healed(s: pm.State) -> None:
    s += "A link is http:" + pm.gen("x", max_tokens=6, token_healing=True)


@pm.function
def streamed(s: pm.State) -> None:
    s += "Stream ünïcødé:" + pm.gen("x", max_tokens=40)


PROGRAMS = [
    plain, stopped, penalised, choosing, forked, conforming, typed, tools, talking, sampled, retried, healed, streamed,
]  # fmt: skip


def outcome(program: pm.Program, backend: Backend, namespace: str, **options: Any) -> dict[str, Any]:
    """All that a run left behind, without ids and times."""
    options = {"seed": 7, "temperature": 1.0, **options}
    state = program.run(backend=backend, namespace=namespace, **options)
    names = [name for name in NAMES if name in state]
    single = [name for name in names if program is not forked or name != "part"]
    return {
        "text": state.text(),
        "token_ids": state.token_ids(),
        "values": {name: state[name] for name in names},
        "meta": {name: _timeless(state.get_meta_info(name)) for name in single},
        "usage": replace(state.usage, seconds=0.0),
    }


def differences(left: Any, right: Any, at: str = "") -> list[str]:
    """Where two outcomes differ; logprobs may by the rounding of another batch."""
    if isinstance(left, float) and isinstance(right, float):
        return [] if math.isclose(left, right, rel_tol=1e-3, abs_tol=1e-3) else [f"{at}: {left} and {right}"]
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return [line for name in left for line in differences(left[name], right[name], f"{at}.{name}")]
    if isinstance(left, list | tuple) and isinstance(right, list | tuple) and len(left) == len(right):
        pairs = enumerate(zip(left, right, strict=True))
        return [line for index, (a, b) in pairs for line in differences(a, b, f"{at}[{index}]")]
    return [] if left == right else [f"{at}: {left!r} and {right!r}"]


NAMES = (
    "a", "b", "part", "end", "date", "one", "sum", "n", "x", "reply", "reply2",
    *(f"by_{type(rule).__name__}" for rule in (
        pm.token_length_normalized, pm.greedy_token_selection, pm.unconditional_likelihood_normalized,
        pm.exact_probability,
    )),
)  # fmt: skip


def fresh() -> str:
    """A namespace that nothing is cached in."""
    return f"test-{next(_names)}"


def _timeless(meta: Any) -> Any:
    if isinstance(meta, list):
        return [_timeless(item) for item in meta]
    if not isinstance(meta, dict):
        return meta
    return {name: _timeless(value) for name, value in meta.items() if name not in ("id", "e2e_latency")}
