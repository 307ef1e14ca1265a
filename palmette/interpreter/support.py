"""What a backend cannot do is refused when it is appended, before a token is paid for."""

from __future__ import annotations

from typing import Any

from palmette.errors import UnsupportedConstraint, UnsupportedFeature
from palmette.ir import Gen, HoleOptions, Media, Node, RoleBegin
from palmette.specs import Choices, Grammar, JsonSchema, Regex, Spec, inner_specs
from palmette.types import Capabilities

_KINDS: dict[type[Any], str] = {Regex: "regex", Choices: "choices", JsonSchema: "json_schema", Grammar: "grammar"}


def check_supported(node: Node, capabilities: Capabilities, defaults: HoleOptions) -> None:
    """`defaults` are the run's options.

    Raises:
        UnsupportedConstraint, UnsupportedFeature: naming the author's line.
    """
    if isinstance(node, Gen):
        _check_hole(node, capabilities, node.options.stop_regex or defaults.stop_regex)
    elif isinstance(node, Media) and not capabilities.vision:
        raise UnsupportedFeature(node.kind, "the model has no vision part").at(source=node.source)
    elif isinstance(node, RoleBegin) and not node.role:
        raise UnsupportedFeature("role ''", "a role has a name").at(source=node.source)


def spec_kinds(spec: Spec) -> set[str]:
    """The kinds of constraint that a specification is made of, under their names in `Capabilities.constraints`."""
    kinds: set[str] = set()
    level: list[Spec] = [spec]
    while level:
        kinds.update(_KINDS[type(found)] for found in level if type(found) in _KINDS)
        level = [inner for found in level for inner in inner_specs(found)]
    return kinds


def _check_hole(node: Gen, capabilities: Capabilities, stop_regex: tuple[str, ...] | None) -> None:
    model = capabilities.model or "this backend"
    problem: UnsupportedConstraint | None = None
    if node.constraint is not None:
        asked = node.constraint.kind
        if node.constraint.binding is None:
            problem = UnsupportedConstraint("", asked, "nobody has read it", "append it to a state, which does")
        elif missing := spec_kinds(node.constraint.binding.spec) - capabilities.constraints:
            what = "it" if missing == {asked} else f"{', '.join(sorted(missing))}, which it becomes"
            problem = UnsupportedConstraint("", asked, f"{model} does not enforce {what}")
        elif node.reasoning is not None:
            hint = "write the reasoning into a hole of its own"
            problem = UnsupportedConstraint("", asked, "separate_reasoning leaves the whole text free", hint)
    if problem is None and stop_regex and "stop_regex" not in capabilities.constraints:
        problem = UnsupportedConstraint("", "stop_regex", f"{model} does not stop at patterns")
    if problem is not None:
        raise problem.at(hole=node.name, source=node.source)
