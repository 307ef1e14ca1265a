"""Does what a chat template writes for a message depend on nothing but that message and the first one?

    {{ head }}{% for m in messages %}{{ body of m }}{% endfor %}{{ tail }}

Where head and tail look at `messages[0]` alone, and the body at `m`, `messages[0]` and `loop.first`, a message behind
the first is written the same whatever stands between the two. Most templates of instruct models are of this kind; those
that count turns, look ahead or carry something from one to the next are not. Told from the syntax tree: every kind of
node that is not known to be harmless makes the answer no.
"""

from __future__ import annotations

from jinja2 import TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

_LIST = "messages"
_HARMLESS = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.Assign,
    nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair,
    nodes.Concat, nodes.Add, nodes.Sub, nodes.Mul, nodes.Mod, nodes.Neg, nodes.Compare, nodes.Operand,
    nodes.And, nodes.Or, nodes.Not, nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Call, nodes.Keyword,
)  # fmt: skip
_STATEFUL = {"cycler", "joiner", "namespace", "lipsum", "self", "varargs", "kwargs", "caller", "strftime_now"}


def depends_on_its_message_alone(source: str) -> bool:
    """Whether the template of this source is known to be of that kind; False for one that cannot be parsed."""
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"], cache_size=0)
    try:
        tree = environment.parse(source)
    except (TemplateError, RecursionError):
        return False
    loops = [node for node in tree.body if isinstance(node, nodes.For)]
    if len(loops) != 1 or not _is_plain(loops[0]):
        return False
    loop = loops[0]
    rest = [node for node in tree.body if node is not loop]
    message = loop.target.name if isinstance(loop.target, nodes.Name) else ""
    return all(_is_local(node, None) for node in rest) and all(_is_local(node, message) for node in loop.body)


def _is_plain(loop: nodes.For) -> bool:
    """for m in messages, with nothing else to it."""
    over_all = isinstance(loop.iter, nodes.Name) and loop.iter.name == _LIST
    named = isinstance(loop.target, nodes.Name) and loop.target.name not in (_LIST, "loop")
    return over_all and named and not loop.else_ and loop.test is None and not loop.recursive


def _is_local(node: nodes.Node, message: str | None) -> bool:
    """
    Args:
        message: the name of the message in the loop's body; None outside.
    """
    if not isinstance(node, _HARMLESS) or (isinstance(node, nodes.Filter) and node.name == "random"):
        return False
    if isinstance(node, nodes.Assign) and not _is_own(node.target, message):
        return False
    if isinstance(node, nodes.Getitem) and _is_name(node.node, _LIST):
        return isinstance(node.arg, nodes.Const) and node.arg.value == 0
    if isinstance(node, nodes.Getattr) and _is_name(node.node, "loop"):
        return message is not None and node.attr == "first"
    if isinstance(node, nodes.Name) and (node.name in (_LIST, "loop") or node.name in _STATEFUL):
        return False  # the whole list, or what changes as it is used
    return all(_is_local(child, message) for child in node.iter_child_nodes())


def _is_own(target: nodes.Node, message: str | None) -> bool:
    """Is it a plain name of the template's own? In a loop's body it is forgotten at the body's end."""
    return isinstance(target, nodes.Name) and target.name not in (_LIST, "loop", message)


def _is_name(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.name == name
