"""A program as data: the closed union of nodes that appending to a state produces.

Every node is frozen and knows the line it came from. `Expr` gives nodes `+`, so that `"A: " + gen("x")` is an
expression; `flatten` turns whatever an author may append into leaf nodes. Streams are named by their path in the fork
tree: () is the program itself, (k, i) below a path is branch i of that stream's k-th fork. Programs that a program
calls are named by their path in the tree of calls: () is the one that was traced, (k,) its k-th call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, get_args

from palmette.errors import UsageError
from palmette.ir.options import HoleOptions
from palmette.ir.source import SourcePos
from palmette.specs import Spec

StreamPath: TypeAlias = tuple[int, ...]
CallPath: TypeAlias = tuple[int, ...]
ConstraintKind: TypeAlias = Literal["regex", "json_schema", "grammar", "type", "dtype", "tools", "structural_tag"]
JoinMode: TypeAlias = Literal["gather_variable", "concate_and_append", "copy"]
JoinPolicy: TypeAlias = Literal["all", "first_error", "collect"]


class Expr:
    """Something that can be appended to a state; `+` concatenates."""

    __slots__ = ()

    def __add__(self, other: object) -> ExprList:
        return ExprList((self, _as_item(other)))

    def __radd__(self, other: object) -> ExprList:
        return ExprList((_as_item(other), self))


class Composite(Expr):
    """An expression made of others, which `flatten` opens."""

    __slots__ = ()

    def parts(self) -> tuple[Any, ...]:
        """Expressions and strings, in order."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class ExprList(Composite):
    """A concatenation, in order. Items may be lists too."""

    items: tuple[Any, ...]

    def parts(self) -> tuple[Any, ...]:
        return self.items

    def __add__(self, other: object) -> ExprList:
        return ExprList((*self.items, _as_item(other)))

    def __radd__(self, other: object) -> ExprList:
        return ExprList((_as_item(other), *self.items))


class ChoiceRule(Protocol):
    """Decides a `select` from the logprobs of the choices' tokens; stored in the IR by its name."""

    @property
    def name(self) -> str: ...

    @property
    def needs_unconditional(self) -> bool: ...


def _source() -> Any:
    return field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Text(Expr):
    """Constant text."""

    text: str
    source: SourcePos | None = _source()


@dataclass(frozen=True, slots=True)
class Argument(Expr):
    """A program argument whose value only a run knows (traces only)."""

    name: str
    call: CallPath | None = None  # the program whose argument it is; None = this one
    source: SourcePos | None = _source()


@dataclass(frozen=True, slots=True)
class Variable(Expr):
    """The text of a hole, read where it is appended (traces only: a run appends the value)."""

    name: str
    stream: StreamPath = ()  # the stream that was read
    call: CallPath | None = None  # the program whose hole it is; None = this one
    source: SourcePos | None = _source()


class TextFilter(Protocol):
    """Passes on what is to be shown of a text. Pieces in, pieces out."""

    def feed(self, text: str) -> str: ...

    def finish(self) -> str:
        """What was held back, when nothing more will come."""
        ...


class Binding(Protocol):
    """What a constraint comes to in a run; made by the language half, kept beside the author's own object."""

    @property
    def spec(self) -> Spec:
        """What the text is held to."""
        ...

    @property
    def stop(self) -> tuple[str, ...]:
        """Stop strings that come with the constraint: one character each, and the text is complete with it."""
        ...

    @property
    def schema(self) -> str | None:
        """The JSON schema of a type, as JSON."""
        ...

    @property
    def is_json(self) -> bool:
        """The text is JSON, so that its parts can be read while it grows."""
        ...

    @property
    def parse(self) -> Callable[[str], Any] | None:
        """The value of a finished text, ValueError where a validator refuses it; None = the text is the value."""
        ...

    @property
    def is_free(self) -> bool:
        """The text is free but for what stands in tags."""
        ...

    @property
    def shown(self) -> Callable[[], TextFilter] | None:
        """Makes what takes the markup out of a text that streams; None = there is none."""
        ...

    def in_family(self, chat_template: str) -> Binding:
        """The same for a model with this chat template (Jinja, "" = none): tool calls are written in its format."""
        ...


@dataclass(frozen=True, slots=True)
class UnboundType:
    """The type of a loaded hole that nobody bound: its value will be plain JSON data."""

    label: str
    schema: str  # JSON


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a hole: what a constraint of kind "tools" holds."""

    tools: tuple[Any, ...]  # objects with a name and a signature
    choice: str = "auto"  # "auto": an answer or calls; "required": calls; a name: a call of that tool
    parallel: bool = True  # several calls in one message, where the family writes them

    def __str__(self) -> str:
        return f"[{', '.join(tool.name for tool in self.tools)}] {self.choice}"


def type_label(type_: Any) -> str:
    """A type by name, an alias such as list[int] as it is written, without the names of modules."""
    if isinstance(type_, str):
        return type_
    if isinstance(type_, type) and not get_args(type_):
        return type_.__qualname__
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", str(type_))


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a hole's text must match. `value` is the author's own object: pattern, schema, grammar or type."""

    kind: ConstraintKind
    value: Any
    binding: Binding | None = field(default=None, compare=False, repr=False)  # None = nobody has read it yet

    @property
    def label(self) -> str:
        """The value on one line; a type by its name."""
        if self.kind == "tools":
            return str(self.value)
        if self.kind not in ("type", "dtype"):
            return repr(self.value)
        return self.value.label if isinstance(self.value, UnboundType) else type_label(self.value)


@dataclass(frozen=True, slots=True)
class Gen(Expr):
    """A hole the model fills."""

    name: str | None = None
    options: HoleOptions = HoleOptions()
    constraint: Constraint | None = None
    reasoning: str | None = None  # the reasoning format that is split from the answer
    source: SourcePos | None = _source()


@dataclass(frozen=True, slots=True)
class Select(Expr):
    """A hole filled with one of `choices`."""

    name: str | None
    choices: tuple[str, ...]
    rule: ChoiceRule
    temperature: float = 0.0
    source: SourcePos | None = _source()


@dataclass(frozen=True, slots=True)
class RoleBegin(Expr):
    role: str
    source: SourcePos | None = _source()


@dataclass(frozen=True, slots=True)
class RoleEnd(Expr):
    role: str
    source: SourcePos | None = _source()


@dataclass(frozen=True, slots=True)
class Media(Expr):
    """An image or a video, named by path or digest."""

    kind: Literal["image", "video"]
    path: str
    num_frames: int = 0
    source: SourcePos | None = _source()


@dataclass(frozen=True, slots=True)
class Tool(Expr):
    """A tool offered to the model: its signature is written as text."""

    name: str
    signature: str  # JSON: name, description, parameters (a JSON schema)
    source: SourcePos | None = _source()


@dataclass(frozen=True, slots=True)
class Fork(Expr):
    """`size` branches go on from here; `index` counts the forks of this stream."""

    index: int
    size: int
    source: SourcePos | None = _source()


@dataclass(frozen=True, slots=True)
class Join(Expr):
    """The branches of fork `index` end here. `names` are the variables they bring."""

    index: int
    mode: JoinMode = "gather_variable"
    policy: JoinPolicy = "all"
    names: tuple[str, ...] = ()
    source: SourcePos | None = _source()


@dataclass(frozen=True, slots=True)
class SetVariable(Expr):
    """s["x"] = value: names a value without writing text. Only JSON values serialize.

    In a trace, text that depends on arguments or holes is an ExprList of the nodes it is made of.
    """

    name: str
    value: Any
    source: SourcePos | None = _source()


@dataclass(frozen=True, slots=True)
class ScopeBegin(Expr):
    name: str
    source: SourcePos | None = _source()


@dataclass(frozen=True, slots=True)
class ScopeEnd(Expr):
    """The text since the matching begin becomes the variable."""

    name: str
    source: SourcePos | None = _source()


@dataclass(frozen=True, slots=True)
class Checkpoint(Expr):
    index: int  # counts the checkpoints of this stream
    source: SourcePos | None = _source()


@dataclass(frozen=True, slots=True)
class Rollback(Expr):
    """Everything appended since the checkpoint is undone; its tokens stay cached."""

    index: int
    source: SourcePos | None = _source()


@dataclass(frozen=True, slots=True)
class HostStep(Expr):
    """A Python callable the program runs here (until=, a callable fork argument): named, never serialized."""

    name: str
    source: SourcePos | None = _source()


Node: TypeAlias = (
    Text
    | Argument
    | Variable
    | Gen
    | Select
    | RoleBegin
    | RoleEnd
    | Media
    | Tool
    | Fork
    | Join
    | SetVariable
    | ScopeBegin
    | ScopeEnd
    | Checkpoint
    | Rollback
    | HostStep
)
NODE_TYPES: tuple[type[Any], ...] = get_args(Node)


def flatten(expr: object, source: SourcePos | None) -> Iterator[Node]:
    """The leaf nodes of an expression, in order; plain strings become Text at `source`.

    Raises:
        UsageError: something that is no expression, named with its type.
    """
    stack = [expr]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield Text(str.__str__(item), source)  # exactly a str, whatever subclass came
        elif isinstance(item, Composite):
            stack.extend(reversed(item.parts()))
        elif isinstance(item, NODE_TYPES):
            yield item
        else:
            raise UsageError(
                f"cannot append {item!r} ({type(item).__name__}): append str, gen, select, roles, media or their sums"
            )


def _as_item(other: object) -> object:
    if isinstance(other, str | Expr):
        return other
    raise TypeError(f"cannot concatenate {type(other).__name__} to a program expression: write str(...) around it")
