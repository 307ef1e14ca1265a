"""Compiles and renders a Jinja template that came with a model file, within bounds.

A template is somebody else's program. It runs in Jinja's immutable sandbox (nothing that reaches Python's internals, no
mutation of what it is given), its output and its steps are counted, and its errors are ours. It sees what transformers'
`apply_chat_template` offers: `raise_exception`, `strftime_now`, `tojson`, loop controls, and the `generation` block,
which only marks text. A step is a call, a look-up or an element of a range, so the bound does not depend on a clock.
The bounds catch accidents; a template written to waste memory can still do so, by strings it never writes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from palmette import errors

MAX_OUTPUT = 1 << 24  # characters
MAX_STEPS = 1 << 22


class CompiledTemplate:
    """One template, compiled once. Thread-safe."""

    def __init__(self, source: str) -> None:
        """Compile.

        Raises:
            TemplateError: the source is no valid template.
        """
        self._lock = threading.Lock()  # the environment counts the steps of one rendering at a time
        self._environment = _Environment()
        try:
            self._template = self._environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise errors.TemplateError(f"the chat template is broken: {error}") from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """Render with fresh bounds.

        Raises:
            TemplateError: an error inside, a refusal (`raise_exception`), or the bounds exceeded.
        """
        pieces: list[str] = []
        size = 0
        with self._lock:
            self._environment.steps = 0
            try:
                for piece in self._template.generate(**variables):
                    pieces.append(piece)
                    size += len(piece)
                    if size > MAX_OUTPUT:
                        raise errors.TemplateError(f"the chat template wrote more than {MAX_OUTPUT} characters")
            except TemplateError as error:
                raise errors.TemplateError(f"the chat template failed: {error}") from error
            except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError) as error:
                raise errors.TemplateError(f"the chat template failed: {type(error).__name__}: {error}") from error
            except (TypeError, ValueError) as error:
                raise errors.TemplateError(f"the chat template failed: {type(error).__name__}: {error}") from error
        return "".join(pieces)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, counting steps."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})  # the operators that make much of little

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlock], cache_size=0
        )
        self.steps = 0
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["range"] = self._range

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" or (operator in "*%" and not numbers):
            raise TemplateError(f"{type(left).__name__} {operator} {type(right).__name__} is not allowed")
        if isinstance(left, str) and isinstance(right, str) and len(left) + len(right) > MAX_OUTPUT:
            raise TemplateError(f"a string of more than {MAX_OUTPUT} characters")
        return super().call_binop(context, operator, left, right)

    def call(self, *args: Any, **kwargs: Any) -> Any:  # (context, function, *its arguments)
        self._count(1)
        return super().call(*args, **kwargs)

    def getattr(self, obj: Any, attribute: str) -> Any | Undefined:
        self._count(1)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any | Undefined:
        self._count(1)
        return super().getitem(obj, argument)

    def _range(self, *args: int) -> range:
        elements = range(*args)
        self._count(len(elements))
        return elements

    def _count(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise TemplateError(f"more than {MAX_STEPS} steps")


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` renders as its body."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    """Jinja's own filter escapes for HTML; prompts want plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)
