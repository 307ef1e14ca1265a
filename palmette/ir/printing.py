"""A graph as text for people: one node a line, branches indented below their fork."""

from __future__ import annotations

from dataclasses import fields

from palmette.ir.graph import Graph
from palmette.ir.nodes import (
    Argument,
    CallPath,
    Checkpoint,
    ExprList,
    Fork,
    Gen,
    HostStep,
    Join,
    Media,
    Node,
    RoleBegin,
    RoleEnd,
    Rollback,
    ScopeBegin,
    ScopeEnd,
    Select,
    SetVariable,
    StreamPath,
    Text,
    Tool,
    Variable,
)
from palmette.ir.options import HoleOptions


def to_text(graph: Graph) -> str:
    """
    program qa(question)
      text "Q: "
      arg question
      gen answer max_new_tokens=16
      fork 0 into 2
        branch 0:
          text "..."
    """
    lines = [f"program {graph.name}({', '.join(graph.parameters)})"]
    # Depth-first without recursion: (path, indent, index of the next node)
    stack: list[tuple[StreamPath, int, int]] = [((), 1, 0)]
    while stack:
        path, indent, start = stack.pop()
        nodes = graph.streams.get(path, ())
        if path and start == 0:
            lines.append("  " * (indent - 1) + f"branch {path[-1]}:")
        for index in range(start, len(nodes)):
            node = nodes[index]
            lines.append("  " * indent + describe(node))
            if isinstance(node, Fork):
                stack.append((path, indent, index + 1))
                for i in reversed(range(node.size)):
                    branch = (*path, node.index, i)
                    if branch in graph.streams:
                        stack.append((branch, indent + 2, 0))
                break
        else:
            continue
    if graph.stopped is not None:
        lines.append(f"  stopped: {graph.stopped}")
    for call in graph.calls:
        lines.append("")
        lines.append(to_text(call))
    return "\n".join(lines)


def describe(node: Node) -> str:
    """One node on one line."""
    match node:
        case Text(text=text):
            return f"text {_quoted(text)}"
        case Argument(name=name, call=call):
            return f"arg {name}" + _owner((), call)
        case Variable(name=name, stream=stream, call=call):
            return f"read {name}" + _owner(stream, call)
        case Gen(name=name, options=options, constraint=constraint):
            parts = [f"gen {name or '-'}", *_options(options)]
            return " ".join(parts + ([f"{constraint.kind}={_short(constraint.label)}"] if constraint else []))
        case Select(name=name, choices=choices, rule=rule):
            return f"select {name or '-'} {list(choices)} by {rule.name}"
        case RoleBegin(role=role):
            return f"begin {role}"
        case RoleEnd(role=role):
            return f"end {role}"
        case Media(kind=kind, path=path):
            return f"{kind} {_quoted(path)}"
        case Tool(name=name):
            return f"tool {name}"
        case Fork(index=index, size=size):
            return f"fork {index} into {size}"
        case Join(index=index, mode=mode, names=names):
            return f"join {index} {mode}" + (f" -> {', '.join(names)}" if names else "")
        case SetVariable(name=name, value=ExprList(items=items)):
            return f"set {name} = " + " + ".join(map(describe, items))
        case SetVariable(name=name, value=value):
            return f"set {name} = {_quoted(repr(value))}"
        case ScopeBegin(name=name):
            return f"scope {name} begins"
        case ScopeEnd(name=name):
            return f"scope {name} ends"
        case Checkpoint(index=index):
            return f"checkpoint {index}"
        case Rollback(index=index):
            return f"rollback to {index}"
        case HostStep(name=name):
            return f"host step {name}"


def _options(options: HoleOptions) -> list[str]:
    given = ((f.name, getattr(options, f.name)) for f in fields(options))
    return [f"{name}={value!r}" for name, value in given if value is not None]


def _owner(stream: StreamPath, call: CallPath | None) -> str:
    """Whose name it is, where that is not obvious."""
    parts = [f"stream {'.'.join(map(str, stream))}"] if stream else []
    if call is not None:
        parts.append(f"call {'.'.join(map(str, call))}" if call else "the traced program")
    return "".join(f" of {part}" for part in parts)


def _short(text: str, limit: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]}..."


def _quoted(text: str, limit: int = 60) -> str:
    shown = text if len(text) <= limit else f"{text[:limit]}..."
    return '"' + shown.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"') + '"'
