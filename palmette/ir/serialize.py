"""Graphs to JSON and back, equal. Data only: nothing is ever imported or called by name.

A type is stored as its JSON schema and a label, a tool as its name and signature, a choice rule by its name; `loads`
binds them from what the caller passes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import UnionType
from typing import Any, get_args

from palmette.errors import UsageError, VerificationError
from palmette.ir.graph import Graph, Stop
from palmette.ir.nodes import (
    NODE_TYPES,
    ChoiceRule,
    Constraint,
    ConstraintKind,
    ExprList,
    Gen,
    HostStep,
    Node,
    Select,
    SetVariable,
    StreamPath,
    ToolUse,
    UnboundType,
)
from palmette.ir.options import HoleOptions
from palmette.ir.source import SourcePos
from palmette.ir.spec_data import SPEC_TYPES, spec_data, spec_of
from palmette.ir.verify import verify

VERSION = 1
_KINDS = {t.__name__: t for t in NODE_TYPES}
_FIELD_TYPES: dict[str, type | UnionType] = {  # of the nodes' fields; data from elsewhere is not trusted
    **dict.fromkeys(("text", "role", "path", "signature", "mode", "policy"), str),
    **dict.fromkeys(("name", "reasoning"), str | None),
    **dict.fromkeys(("index", "size", "num_frames"), int),
    "stream": tuple,
    "call": tuple | None,
    "names": tuple,
    "temperature": int | float,
}


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
        graph = _Loader(types or {}, tools or {}, {rule.name: rule for rule in rules}).graph(raw)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
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
    data: dict[str, Any] = {"node": type(node).__name__}
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
        elif isinstance(node, SetVariable):
            value = _value_data(value) if field.name == "value" else value
        data[field.name] = value
    return data


def _value_data(value: Any) -> dict[str, Any]:
    if isinstance(value, ExprList):
        return {"nodes": [_node_data(node) for node in value.items]}
    if not _is_json(value):
        raise TypeError(f"{value!r} would not come back from JSON as it is")
    return {"json": value}


def _is_json(value: object) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    return value is None or type(value) in (str, bool, int, float)


def _constraint_data(constraint: Constraint) -> dict[str, Any]:
    value = constraint.value
    if constraint.kind in ("type", "dtype"):
        if isinstance(value, UnboundType):
            schema = json.loads(value.schema)
        elif constraint.binding is not None and constraint.binding.schema is not None:
            schema = json.loads(constraint.binding.schema)
        else:
            schema = _json_schema(value)
        return {"kind": constraint.kind, "label": constraint.label, "schema": schema}
    if isinstance(value, ToolUse):
        tools = [[tool.name, tool.signature] for tool in value.tools]
        return {"kind": constraint.kind, "tools": tools, "choice": value.choice, "parallel": value.parallel}
    if isinstance(value, SPEC_TYPES):
        return {"kind": constraint.kind, "spec": spec_data(value)}
    return {"kind": constraint.kind, "value": value}


def _json_schema(type_: Any) -> Any:
    """Of a hole that was built by hand; what `gen` makes knows the schema that it is held to."""
    try:
        from pydantic import TypeAdapter
    except ImportError:
        return {}
    return TypeAdapter(type_).json_schema()


def _source_data(source: SourcePos | None) -> list[Any] | None:
    return None if source is None else [source.file, source.line]


class _Loader:
    def __init__(self, types: Mapping[str, Any], tools: Mapping[str, Any], rules: Mapping[str, ChoiceRule]) -> None:
        self.types, self.tools, self.rules = types, tools, rules

    def graph(self, raw: Mapping[str, Any]) -> Graph:
        streams: dict[StreamPath, tuple[Node, ...]] = {
            tuple(int(p) for p in path): tuple(self.node(n) for n in nodes) for path, nodes in raw["streams"]
        }
        stopped = None if raw["stopped"] is None else Stop(str(raw["stopped"][0]), _source(raw["stopped"][1]))
        calls = tuple(self.graph(call) for call in raw["calls"])
        return Graph(str(raw["name"]), tuple(map(str, raw["parameters"])), streams, calls, stopped)

    def node(self, raw: Mapping[str, Any]) -> Node:
        kind = _KINDS.get(raw["node"])
        if kind is None or kind is HostStep:
            raise UsageError(f"unknown node {raw['node']!r}")
        values = {k: v for k, v in raw.items() if k != "node"}
        values["source"] = _source(values.get("source"))
        if kind is Gen:
            values["options"] = HoleOptions.of(**values["options"])
            values["constraint"] = self.constraint(values["constraint"])
        elif kind is Select:
            rule = self.rules.get(values["rule"])
            if rule is None:
                raise VerificationError([f"choice rule {values['rule']!r} resolves to nothing: pass it in rules="])
            values["rule"], values["choices"] = rule, tuple(values["choices"])
        elif kind is SetVariable:
            values["value"] = self.value(values["value"])
        else:
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        for name, value in values.items():
            if name in _FIELD_TYPES and not isinstance(value, _FIELD_TYPES[name]):
                raise UsageError(f"{raw['node']}.{name} cannot be {value!r}")
        node: Node = kind(**values)
        return node

    def value(self, raw: Mapping[str, Any]) -> Any:
        return ExprList(tuple(self.node(node) for node in raw["nodes"])) if "nodes" in raw else raw["json"]

    def constraint(self, raw: Mapping[str, Any] | None) -> Constraint | None:
        if raw is None:
            return None
        if raw["kind"] not in get_args(ConstraintKind):
            raise UsageError(f"unknown constraint {raw['kind']!r}")
        if "tools" in raw:
            return Constraint(raw["kind"], self.tool_use(raw))
        if "spec" in raw:
            return Constraint(raw["kind"], spec_of(raw["spec"]))
        if "label" not in raw:
            value = raw["value"]
            return Constraint(raw["kind"], tuple(value) if isinstance(value, list) else value)
        bound = self.types.get(raw["label"])
        return Constraint(raw["kind"], UnboundType(raw["label"], json.dumps(raw["schema"])) if bound is None else bound)

    def tool_use(self, raw: Mapping[str, Any]) -> ToolUse:
        names = [name for name, _ in raw["tools"]]
        unbound = [f"tool {name!r} resolves to nothing: pass it in tools=" for name in names if name not in self.tools]
        if unbound:
            raise VerificationError(unbound)
        return ToolUse(tuple(self.tools[name] for name in names), str(raw["choice"]), bool(raw["parallel"]))


def _source(raw: Sequence[Any] | None) -> SourcePos | None:
    return None if raw is None else SourcePos(str(raw[0]), int(raw[1]))
