"""What an author appends: `gen`, `select`, roles, media, and `separate_reasoning`.

Pure constructors of IR nodes: no I/O, no backend. A call that cannot be right fails here, on the author's line.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from palmette.errors import InvalidOption, PalmetteError, UnsupportedFeature
from palmette.formats.reasoning import reasoning_format
from palmette.interpreter.choices import ChoicesSamplingMethod, token_length_normalized
from palmette.ir import (
    Constraint,
    ConstraintKind,
    Expr,
    ExprList,
    Gen,
    HoleOptions,
    Media,
    RoleBegin,
    RoleEnd,
    Select,
    SourcePos,
    author_position,
)
from palmette.lang.constraints import bound
from palmette.lang.tool_use import tool_use
from palmette.specs import JsonSchema, Tagged

MAX_CHOICES = 10_000


def gen(
    name: str | type[Any] | Any | None = None,
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: str | Iterable[str] | None = None,
    stop_token_ids: int | Iterable[int] | None = None,
    stop_regex: str | Iterable[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    repetition_penalty: float | None = None,
    ignore_eos: bool | None = None,
    seed: int | None = None,
    logit_bias: Mapping[Any, float] | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    dtype: type[Any] | str | None = None,
    type: Any | None = None,
    choices: Sequence[str] | None = None,
    choices_method: ChoicesSamplingMethod | None = None,
    regex: str | None = None,
    json_schema: str | Mapping[str, Any] | bool | JsonSchema | builtins.type[Any] | None = None,
    grammar: str | None = None,
    lora: str | None = None,
    timeout: float | None = None,
    on_budget: Literal["raise", "close"] | None = None,
    structural_tag: str | Mapping[str, Any] | Tagged | None = None,
    tools: Sequence[Callable[..., Any]] | None = None,
    tool_choice: str | Callable[..., Any] | None = None,
    parallel_tool_calls: bool | None = None,
    thinking_budget: int | None = None,
    token_healing: bool | None = None,
) -> Gen | Select:
    """A hole. What is None is taken from the run, then from `options(...)`, then from the defaults.

    The first positional argument is the hole's name, or a type. At most one of `type`, `dtype`, `choices`, `regex`,
    `json_schema`, `grammar`, `structural_tag`, `tools`. With `choices` it is a `select`. `timeout` is in seconds.

    With `type` (docs/types.md) the hole's value is a value of that type; with the other constraints it is text. Where
    `max_tokens` ends before the value does, the rest is closed as shortly as the constraint allows: a typed hole then
    raises Truncated, or with on_budget="close" takes the closed value; a text hole tells it in its meta info.

    With `tools` the model writes text, or calls of them in its family's format; the value is a `ToolReply`. With
    `tool_choice` "required", or one of the tools, it writes calls only; `parallel_tool_calls=False` allows one.

    `thinking_budget` bounds the reasoning of a hole inside `separate_reasoning`, in tokens. With `token_healing` the
    last token of the text before the hole is given back to the model, which may go on from its text with another.

    >>> str(gen("answer", max_tokens=8).name)
    'answer'

    Raises:
        InvalidOption: an option out of range, or two constraints at once.
        UnsupportedConstraint: a constraint that would not be enforced, with its place, the reason and a hint.
        UnsupportedFeature: `lora`; `type` without pydantic.
    """
    if name is not None and not isinstance(name, str):
        if type is not None:
            raise InvalidOption("type", type, "given once: as the first argument or as type=")
        name, type = None, name
    constraints = {
        "type": type,
        "dtype": dtype,
        "choices": choices,
        "regex": regex,
        "json_schema": json_schema,
        "grammar": grammar,
        "structural_tag": structural_tag,
        "tools": tools,
    }
    given = [key for key, value in constraints.items() if value is not None]
    if len(given) > 1:
        raise InvalidOption(given[1], constraints[given[1]], f"not together with {given[0]}")
    for option, value in {"tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls}.items():
        if value is not None and tools is None:
            raise InvalidOption(option, value, "given together with tools=")
    if lora is not None:
        raise UnsupportedFeature("lora", "adapters are not loaded by this runtime yet")
    if choices is not None:
        return select(
            name, choices, 0.0 if temperature is None else temperature, choices_method or token_length_normalized
        )
    options = HoleOptions.of(
        max_new_tokens=max_tokens,
        min_new_tokens=min_tokens,
        n=n,
        stop=stop,
        stop_token_ids=stop_token_ids,
        stop_regex=stop_regex,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        repetition_penalty=repetition_penalty,
        ignore_eos=ignore_eos,
        seed=seed,
        logit_bias=logit_bias,
        return_logprob=return_logprob,
        logprob_start_len=logprob_start_len,
        top_logprobs_num=top_logprobs_num,
        return_text_in_logprobs=return_text_in_logprobs,
        timeout=timeout,
        on_budget=on_budget,
        thinking_budget=thinking_budget,
        token_healing=token_healing,
    )
    source = author_position()
    if tools is not None:
        constraints["tools"] = tool_use(tools, tool_choice, parallel_tool_calls)
    return Gen(name, options, _constraint(name, source, constraints), None, source)


def gen_int(name: str | None = None, **options: Any) -> Gen | Select:
    """`gen(name, dtype=int, ...)`."""
    return gen(name, dtype=int, **options)


def gen_string(name: str | None = None, **options: Any) -> Gen | Select:
    """`gen(name, dtype=str, ...)`: a quoted string."""
    return gen(name, dtype=str, **options)


def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    choices_method: ChoicesSamplingMethod = token_length_normalized,
) -> Select:
    """Pick one of `choices` by the model's probability, as `choices_method` reads it.

    With a temperature above 0 the choice is drawn from softmax(scores / temperature).

    Raises:
        InvalidOption: no choices, an empty or a repeated one, more than 10,000.
    """
    if choices is None or isinstance(choices, str) or not 0 < len(choices) <= MAX_CHOICES:
        raise InvalidOption("choices", _short(choices), f"a list of 1 to {MAX_CHOICES} strings")
    for choice in choices:
        if not isinstance(choice, str) or not choice:
            raise InvalidOption("choices", choice, "non-empty strings")
    if len(set(choices)) < len(choices):
        twice = next(c for i, c in enumerate(choices) if c in choices[:i])
        raise InvalidOption("choices", twice, "each choice once")
    if not isinstance(choices_method, ChoicesSamplingMethod):
        raise InvalidOption("choices_method", choices_method, "a choice rule: an object with name and decide(scored)")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0.0 <= temperature <= 100.0:
        raise InvalidOption("temperature", temperature, "a number from 0 to 100")
    return Select(name, tuple(choices), choices_method, temperature, author_position())


# -- roles ---------------------------------------------------------------------------------------------------------


def system(expr: str | Expr | None = None) -> ExprList:
    """A whole system message; the text around it is the model's own chat template's."""
    return _role("system", expr)


def user(expr: str | Expr | None = None) -> ExprList:
    """A whole user message."""
    return _role("user", expr)


def assistant(expr: str | Expr | None = None) -> ExprList:
    """A whole assistant message, usually with a `gen` in it."""
    return _role("assistant", expr)


def system_begin() -> RoleBegin:
    """The start of a system message; `system_end()` closes it."""
    return RoleBegin("system", author_position())


def system_end() -> RoleEnd:
    """The end of the message that `system_begin()` opened."""
    return RoleEnd("system", author_position())


def user_begin() -> RoleBegin:
    """The start of a user message; `user_end()` closes it."""
    return RoleBegin("user", author_position())


def user_end() -> RoleEnd:
    """The end of the message that `user_begin()` opened."""
    return RoleEnd("user", author_position())


def assistant_begin() -> RoleBegin:
    """The start of an assistant message; `assistant_end()` closes it."""
    return RoleBegin("assistant", author_position())


def assistant_end() -> RoleEnd:
    """The end of the message that `assistant_begin()` opened."""
    return RoleEnd("assistant", author_position())


# -- media, reasoning ----------------------------------------------------------------------------------------------


def image(path: str) -> Media:
    """An image. A backend without vision refuses it when it is appended."""
    return Media("image", str(path), 0, author_position())


def video(path: str, num_frames: int) -> Media:
    """A video, sampled at `num_frames` frames. A backend without vision refuses it when it is appended."""
    return Media("video", str(path), num_frames, author_position())


def separate_reasoning(expr: str | Expr | None = None, model_type: str = "qwen3") -> ExprList:
    """Split the reasoning of every named hole in `expr` from its answer.

    s["x"] is the answer then, s["x_reasoning_content"] the reasoning, also while streaming. A constraint of the hole
    is that of the answer: the model reasons freely first. `gen(thinking_budget=)` bounds the reasoning in tokens.

    Raises:
        InvalidOption: a model type without a known reasoning format.
    """
    reasoning_format(model_type)
    items = expr.items if isinstance(expr, ExprList) else (expr,) if expr is not None else ()
    return ExprList(tuple(_with_reasoning(item, model_type) for item in items))


def _with_reasoning(item: Any, model_type: str) -> Any:
    if isinstance(item, ExprList):
        return ExprList(tuple(_with_reasoning(i, model_type) for i in item.items))
    return replace(item, reasoning=model_type) if isinstance(item, Gen) else item


def _role(role: str, expr: str | Expr | None) -> ExprList:
    source = author_position()
    middle = () if expr is None else (expr,)
    return ExprList((RoleBegin(role, source), *middle, RoleEnd(role, source)))


def _constraint(name: str | None, source: SourcePos | None, given: Mapping[str, Any]) -> Constraint | None:
    """The constraint that is given, checked; what is wrong with it is the author's line's."""
    kinds: tuple[ConstraintKind, ...] = get_args(ConstraintKind)
    found = next((Constraint(kind, given[kind]) for kind in kinds if given[kind] is not None), None)
    if found is None:
        return None
    try:
        return bound(found)
    except PalmetteError as error:
        raise error.at(hole=name, source=source) from error.__cause__


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
