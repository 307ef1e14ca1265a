"""Python functions as tools: described to the model, called by it in a form that is enforced, and answered.

    @tool
    def weather(city: str) -> str:
        "The weather of a city."

    s += system("You may call: " + weather)
    call = s.gen(ToolCall[weather] | Answer)          # one grammar for both
    if isinstance(call, ToolCall):
        s += tool_result(call.call())

A call is written as {"name": "weather", "arguments": {...}}. Arguments are validated values of the parameters' types.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable
from types import GenericAlias
from typing import Any, Generic, Literal, NotRequired, ParamSpec, TypeVar, get_args, get_type_hints, overload

from palmette.errors import InvalidOption, UsageError
from palmette.ir import Composite, ExprList, RoleBegin, RoleEnd, author_position
from palmette.ir import Tool as ToolNode
from palmette.lang.types import shown_schema

P = ParamSpec("P")
R = TypeVar("R")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]{0,63}")


class Tool(Composite, Generic[P, R]):
    """A function offered to the model. Calling it calls the function; appending it writes its signature as JSON."""

    def __init__(self, func: Callable[P, R], *, name: str | None = None, description: str | None = None) -> None:
        functools.update_wrapper(self, func)
        self.func = func
        self.__name__: str  # with the others that update_wrapper sets
        self.name: str = name or str(getattr(func, "__name__", ""))
        self.description = inspect.cleandoc(description or func.__doc__ or "")
        if not _NAME.fullmatch(self.name):
            raise InvalidOption("name", self.name, "letters, digits, _ and -, at most 64; give one with tool(name=...)")
        _check_parameters(self.name, func)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.func(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<tool {self.name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tool) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def parts(self) -> tuple[Any, ...]:
        return (ToolNode(self.name, self.signature, author_position()),)

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.func)

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON schema of the arguments, as people write it; what is enforced is stricter (docs/types.md)."""
        return shown_schema(self.arguments_type)

    @property
    def signature(self) -> str:
        """Name, description and parameters as one line of JSON: what the model is shown."""
        shown = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return json.dumps({key: value for key, value in shown.items() if value}, ensure_ascii=False)

    @functools.cached_property
    def arguments_type(self) -> Any:
        """A TypedDict of the parameters; those with a default need not be written."""
        from typing_extensions import TypedDict  # comes with pydantic, which types need anyway

        try:
            hints = get_type_hints(self.func, include_extras=True)
        except (NameError, TypeError) as error:
            raise InvalidOption("tool", self.name, f"annotations that can be resolved: {error}") from None
        fields: dict[str, Any] = {}
        for parameter in inspect.signature(self.func).parameters.values():
            hint = hints.get(parameter.name, Any)
            fields[parameter.name] = hint if parameter.default is parameter.empty else NotRequired[hint]
        return TypedDict(f"{self.name}_arguments", fields)  # type: ignore[operator]

    @property
    def _key(self) -> tuple[Any, ...]:
        return self.func, self.name, self.description


@overload
def tool(func: Callable[P, R], /) -> Tool[P, R]: ...
@overload
def tool(*, name: str | None = None, description: str | None = None) -> Callable[[Callable[P, R]], Tool[P, R]]: ...
def tool(func: Callable[..., Any] | None = None, /, *, name: str | None = None, description: str | None = None) -> Any:
    """Make a tool of a function: bare, called as a decorator, or on a function that is there already.

    Args:
        name: what the model calls it by; the function's own by default.
        description: what the model is told of it; the docstring by default.

    Raises:
        InvalidOption: a parameter that has no name for the model (`*args`, `**kwargs`, positional-only).
    """
    if func is not None:
        return Tool(func)
    return lambda f: Tool(f, name=name, description=description)


class _ToolCallTypes(type):
    """Makes `ToolCall[f, g]` a type, of what is no type: functions."""

    def __getitem__(cls, functions: Any) -> Any:
        """The type of calls of one function or tool, or of several.

        Raises:
            InvalidOption: two of one name, or one that is no function.
        """
        listed = functions if isinstance(functions, tuple) else (functions,)
        for function in listed:
            if not callable(function) or isinstance(function, type):
                raise InvalidOption("ToolCall", function, "functions or tools")
        tools = tuple(f if isinstance(f, Tool) else Tool(f) for f in listed)
        names = [t.name for t in tools]
        if not names or len(set(names)) < len(names):
            raise InvalidOption("ToolCall", names, "one or more functions, each under a name of its own")
        return GenericAlias(cls, tools)


class ToolCall(metaclass=_ToolCallTypes):
    """A call that the model wrote. `ToolCall[f, g]` is the type of calls of these functions, for `gen`.

    Attributes:
        tool: the tool that is called.
        arguments: validated values of the parameters' types; parameters that the model left out are not there.
    """

    def __init__(self, tool: Tool[..., Any], arguments: dict[str, Any]) -> None:
        self.tool = tool
        self.arguments = arguments

    def __repr__(self) -> str:
        return f"ToolCall({self.name}, {self.arguments!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ToolCall) and (self.tool, self.arguments) == (other.tool, other.arguments)

    __hash__ = None  # type: ignore[assignment]  # arguments may hold anything

    @property
    def name(self) -> str:
        """The tool's name."""
        return self.tool.name

    def call(self) -> Any:
        """Call the function with the model's arguments; what it raises is raised as it is.

        Raises:
            UsageError: it is a coroutine function.
        """
        if self.tool.is_async:
            raise UsageError(f"tool {self.name!r} is an async function: use `await call.acall()`")
        return self.tool.func(**self.arguments)

    async def acall(self) -> Any:
        """The same for a coroutine; a plain function is called on this thread."""
        result = self.tool.func(**self.arguments)
        return await result if inspect.isawaitable(result) else result

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """How pydantic reads ToolCall[...]: told apart by name, then by the parameters of each."""
        from pydantic_core import core_schema  # pydantic itself called this

        tools = get_args(source)
        if not tools:
            raise InvalidOption("type", "ToolCall", "ToolCall[f, g]: a call of named functions")
        choices: dict[Any, Any] = {
            t.name: core_schema.no_info_after_validator_function(
                functools.partial(_made, t), handler.generate_schema(_call_type(t))
            )
            for t in tools
        }
        return core_schema.tagged_union_schema(choices, discriminator="name")


def tool_result(value: Any) -> ExprList:
    """A message with what a tool gave back, for the model to read: a text as it is, anything else as JSON.

    Its role is "tool"; a chat template that knows no such role writes it as the user's.

    Raises:
        InvalidOption: it cannot be written as JSON.
    """
    source = author_position()
    return ExprList((RoleBegin("tool", source), _as_text(value), RoleEnd("tool", source)))


def _call_type(of: Tool[..., Any]) -> Any:
    from typing_extensions import TypedDict  # comes with pydantic

    fields: dict[str, Any] = {"name": Literal[of.name], "arguments": of.arguments_type}
    return TypedDict(f"{of.name}_call", fields)  # type: ignore[operator]


def _made(of: Tool[..., Any], written: dict[str, Any]) -> ToolCall:
    return ToolCall(of, written["arguments"])


def _check_parameters(name: str, func: Callable[..., Any]) -> None:
    unnamed = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    )
    for parameter in inspect.signature(func).parameters.values():
        if parameter.kind in unnamed:
            raise InvalidOption("tool", name, f"parameters that are passed by name; {parameter} is not")


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        from pydantic_core import to_json  # knows models, dates and the like; plain data needs no pydantic
    except ModuleNotFoundError:
        to_json = None  # type: ignore[assignment]
    try:
        return json.dumps(value, ensure_ascii=False) if to_json is None else to_json(value).decode("utf-8")
    except (TypeError, ValueError) as error:
        raise InvalidOption("tool_result", value, f"a text, or what JSON can hold: {error}") from None
