"""Graphs to JSON and back, equal. Data only: nothing is ever imported or called by name.

A type is stored as its JSON schema and a label, a tool as its name and signature, a choice rule by its name; `loads`
binds them from what the caller passes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from palmette.errors import UsageError, VerificationError
from palmette.ir.graph import Graph, Stop
from palmette.ir.nodes import NODE_TYPES, ChoiceRule, Constraint, Gen, HostStep, Node, Select, StreamPath, Tool
from palmette.ir.options import HoleOptions
from palmette.ir.source import SourcePos
from palmette.ir.verify import verify

VERSION = 1
_KINDS = {t.__name__: t for t in NODE_TYPES}


@dataclass(frozen=True, slots=True)
class UnboundType:
    """The type of a loaded hole that nobody bound: its value will be plain JSON data."""

    label: str
    schema: str  # JSON


def dumps(graph: Graph, *, indent: int | None = None) -> str:
    """A graph as JSON.

    Raises:
        UsageError: a host step, or a variable whose value is no JSON value.
    """
    try:
        return json.dumps({"palmette_ir": VERSION, **_graph_data(graph)}, indent=indent, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"program {graph.name} cannot be serialized: {error}") from error


def loads(
    data: str,
    *,
    types: Mapping[str, Any] | None = None,
    tools: Mapping[str, Any] | None = None,
    rules: Sequence[ChoiceRule] = (),
) -> Graph:
    """The graph of `dumps`, verified.

    Args:
        types: by label; a hole whose type is not among them yields plain JSON data.
        tools: by name; a tool that is not among them is a verification error.
        rules: choice rules, found by their names.

    Raises:
        UsageError: no JSON, another version, an unknown node.
        VerificationError: the graph breaks a rule.
    """
    try:
        raw = json.loads(data)
        if not isinstance(raw, dict) or raw.get("palmette_ir") != VERSION:
            raise UsageError(f"no IR of version {VERSION}")
        graph = _Loader(types or {}, {rule.name: rule for rule in rules}).graph(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"this is no serialized program: {error!r}") from error
    verify(graph, tools=frozenset(tools or ()))
    return graph


def _graph_data(graph: Graph) -> dict[str, Any]:
    return {
        "name": graph.name,
        "parameters": list(graph.parameters),
        "streams": [[list(path), [_node_data(n) for n in nodes]] for path, nodes in sorted(graph.streams.items())],
        "calls": [_graph_data(call) for call in graph.calls],
        "stopped": None if graph.stopped is None else [graph.stopped.reason, _source_data(graph.stopped.source)],
    }


def _node_data(node: Node) -> dict[str, Any]:
    if isinstance(node, HostStep):
        raise TypeError(f"{node.name} is a Python callable [{node.source}]")
    data: dict[str, Any] = {"kind": type(node).__name__}
    for field in fields(node):
        value = getattr(node, field.name)
        if field.name == "source":
            value = _source_data(value)
        elif isinstance(value, HoleOptions):
            value = {f.name: v for f in fields(value) if (v := getattr(value, f.name)) is not None}
        elif isinstance(value, Constraint):
            value = _constraint_data(value)
        elif field.name == "rule":
            value = value.name
        data[field.name] = value
    return data


def _constraint_data(constraint: Constraint) -> dict[str, Any]:
    value = constraint.value
    if constraint.kind in ("type", "dtype"):
        if isinstance(value, UnboundType):
            return {"kind": constraint.kind, "label": value.label, "schema": json.loads(value.schema)}
        label = value if isinstance(value, str) else getattr(value, "__qualname__", repr(value))
        return {"kind": constraint.kind, "label": label, "schema": _json_schema(value)}
    return {"kind": constraint.kind, "value": value}


def _json_schema(type_: Any) -> Any:
    try:
        from pydantic import TypeAdapter
    except ImportError:
        return {}
    return TypeAdapter(type_).json_schema()


def _source_data(source: SourcePos | None) -> list[Any] | None:
    return None if source is None else [source.file, source.line]


class _Loader:
    def __init__(self, types: Mapping[str, Any], rules: Mapping[str, ChoiceRule]) -> None:
        self.types, self.rules = types, rules

    def graph(self, raw: Mapping[str, Any]) -> Graph:
        streams: dict[StreamPath, tuple[Node, ...]] = {
            tuple(int(p) for p in path): tuple(self.node(n) for n in nodes) for path, nodes in raw["streams"]
        }
        stopped = None if raw["stopped"] is None else Stop(str(raw["stopped"][0]), _source(raw["stopped"][1]))
        calls = tuple(self.graph(call) for call in raw["calls"])
        return Graph(str(raw["name"]), tuple(map(str, raw["parameters"])), streams, calls, stopped)

    def node(self, raw: Mapping[str, Any]) -> Node:
        kind = _KINDS.get(raw["kind"])
        if kind is None or kind is HostStep:
            raise UsageError(f"unknown node {raw['kind']!r}")
        values = {k: v for k, v in raw.items() if k != "kind"}
        values["source"] = _source(values.get("source"))
        if kind is Gen:
            values["options"] = HoleOptions.of(**values["options"])
            values["constraint"] = self.constraint(values["constraint"])
        elif kind is Select:
            rule = self.rules.get(values["rule"])
            if rule is None:
                raise VerificationError([f"choice rule {values['rule']!r} resolves to nothing: pass it in rules="])
            values["rule"], values["choices"] = rule, tuple(values["choices"])
        elif kind is not Tool:
            values = {k: tuple(v) if k in ("names", "stream") else v for k, v in values.items()}
        node: Node = kind(**values)
        return node

    def constraint(self, raw: Mapping[str, Any] | None) -> Constraint | None:
        if raw is None:
            return None
        if "label" not in raw:
            return Constraint(raw["kind"], raw["value"])
        bound = self.types.get(raw["label"])
        return Constraint(raw["kind"], UnboundType(raw["label"], json.dumps(raw["schema"])) if bound is None else bound)


def _source(raw: Sequence[Any] | None) -> SourcePos | None:
    return None if raw is None else SourcePos(str(raw[0]), int(raw[1]))
