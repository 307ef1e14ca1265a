"""What an author's constraint comes to: the specification that crosses the seam, checked on the author's own line.

One function for each way of saying it. A specification is checked once, however often its hole is appended.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

from palmette.errors import InvalidOption, PalmetteError, UnsupportedConstraint
from palmette.formats import ToolFormat
from palmette.formats.structural_tags import structural_spec
from palmette.interpreter.tracer import is_symbolic
from palmette.ir import Constraint, Gen, Node, TextFilter, ToolUse, UnboundType
from palmette.lang.dtypes import dtype_regex
from palmette.lang.tool_use import PLAIN, WithoutCalls, form_of, read_reply, use_spec
from palmette.lang.types import typed
from palmette.specs import Grammar, JsonSchema, Regex, Spec, Tagged


@dataclass(frozen=True, slots=True)
class Bound:
    """A constraint as a run uses it; see `ir.Binding`."""

    spec: Spec
    stop: tuple[str, ...] = ()
    schema: str | None = None
    is_json: bool = False
    parse: Callable[[str], Any] | None = field(default=None, compare=False, repr=False)
    is_free: bool = False
    shown: Callable[[], TextFilter] | None = field(default=None, compare=False, repr=False)
    tools: ToolUse | None = None  # `spec`, `parse` and `shown` are of these, in one family's format

    def in_family(self, chat_template: str) -> Bound:
        """See `ir.Binding`."""
        return self if self.tools is None else _with_tools(self.tools, form_of(chat_template))


def bound(constraint: Constraint) -> Constraint:
    """The constraint with its binding, checked. One that depends on a value only a run knows is left as it is.

    Raises:
        UnsupportedConstraint: it would not be enforced.
        InvalidOption: its value is of another type than its kind takes.
    """
    if constraint.binding is not None or is_symbolic(constraint.value):
        return constraint
    constraint = replace(constraint, value=_plain(constraint.kind, constraint.value))
    binding = _bind(constraint.kind, constraint.value)
    check(binding.spec)
    return replace(constraint, binding=binding)


def with_binding(node: Node) -> Node:
    """A hole that was not made by `gen` (built by hand, or loaded) gets its binding when it is appended.

    Raises as `bound` does.
    """
    if not isinstance(node, Gen) or node.constraint is None or node.constraint.binding is not None:
        return node
    try:
        return replace(node, constraint=bound(node.constraint))
    except PalmetteError as error:
        raise error.at(hole=node.name, source=node.source) from error.__cause__


@lru_cache(maxsize=512)
def check(spec: Spec) -> tuple[str, ...]:
    """What the specification leaves unenforced.

    Raises:
        UnsupportedConstraint: it would not be enforced, is over a limit, or no text satisfies it.
    """
    from palmette.fsm.language import check as check_language  # a fifth of what importing the language costs

    return check_language(spec, clock=time.monotonic)


def json_schema_spec(value: Any) -> JsonSchema:
    """The specification behind `json_schema=`: a text, a mapping or a boolean, a JsonSchema, or a pydantic model.

    Raises:
        InvalidOption: anything else.
        UnsupportedConstraint: it is not JSON.
    """
    if isinstance(value, JsonSchema):
        return value
    if isinstance(value, str):
        return JsonSchema(value)
    if isinstance(value, Mapping | bool):
        return JsonSchema.of(value)
    if isinstance(value, type):
        return JsonSchema(typed(value).schema)
    raise InvalidOption("json_schema", value, "a JSON text, a mapping, a pydantic model or a JsonSchema")


def _plain(kind: str, value: Any) -> Any:
    """What the IR keeps: data, except for types."""
    if kind == "json_schema" and isinstance(value, type):
        return json.loads(typed(value).schema)
    return value


def _bind(kind: str, value: Any) -> Bound:
    if kind == "type":
        made = typed(value)
        return Bound(made.spec, made.stop, made.schema, made.is_json, made.parse)
    if kind == "dtype":
        pattern, stop = dtype_regex(value.label if isinstance(value, UnboundType) else value)
        return Bound(Regex(pattern), stop)
    if kind == "json_schema":
        return Bound(json_schema_spec(value))
    if kind == "structural_tag":
        spec = structural_spec(value)
        return Bound(spec, is_free=isinstance(spec, Tagged))
    if kind == "tools":
        if not isinstance(value, ToolUse):
            raise InvalidOption(kind, value, "what gen(tools=...) makes")
        return _with_tools(value, PLAIN)
    if not isinstance(value, str):
        raise InvalidOption(kind, value, "a string")
    if kind == "regex":
        return Bound(Regex(value))
    if kind == "grammar":
        return Bound(Grammar(value))
    raise UnsupportedConstraint("", kind, "there is no such constraint")


@lru_cache(maxsize=256)
def _with_tools(use: ToolUse, form: ToolFormat) -> Bound:
    spec = use_spec(use, form)
    return Bound(
        spec,
        parse=partial(read_reply, use, form),
        is_free=isinstance(spec, Tagged),
        shown=partial(WithoutCalls, form),
        tools=use,
    )
