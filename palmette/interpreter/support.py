"""What a backend cannot do is refused when it is appended, before a token is paid for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from palmette.errors import InvalidOption, PalmetteError, UnsupportedConstraint, UnsupportedFeature
from palmette.ir import Gen, HoleOptions, Media, Node, RoleBegin
from palmette.specs import Choices, Grammar, Healed, JsonSchema, Reasoned, Regex, Spec, Tagged, inner_specs
from palmette.types import Capabilities

_KINDS: dict[type[Any], str] = {
    Regex: "regex",
    Choices: "choices",
    JsonSchema: "json_schema",
    Grammar: "grammar",
    Tagged: "structural_tag",
    Reasoned: "structural_tag",
    Healed: "token_healing",
}


def check_supported(node: Node, capabilities: Capabilities, defaults: HoleOptions) -> None:
    """`defaults` are the run's options.

    Raises:
        UnsupportedConstraint, UnsupportedFeature: naming the author's line.
    """
    if isinstance(node, Gen):
        _check_hole(node, capabilities, defaults)
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


def _check_hole(node: Gen, capabilities: Capabilities, defaults: HoleOptions) -> None:
    for problem in _problems(node, capabilities, defaults):
        raise problem.at(hole=node.name, source=node.source)


def _problems(node: Gen, capabilities: Capabilities, defaults: HoleOptions) -> Iterator[PalmetteError]:
    options, constraint, enforced = node.options, node.constraint, capabilities.constraints
    model = capabilities.model or "this backend"
    if constraint is not None and constraint.binding is None:
        yield UnsupportedConstraint("", constraint.kind, "nobody has read it", "append it to a state, which does")
    elif constraint is not None and constraint.binding is not None:
        missing = spec_kinds(constraint.binding.in_family(capabilities.chat_template).spec) - enforced
        if missing:
            what = "it" if missing == {constraint.kind} else f"{', '.join(sorted(missing))}, which it becomes"
            yield UnsupportedConstraint("", constraint.kind, f"{model} does not enforce {what}")
    if node.reasoning is None and options.thinking_budget is not None:
        yield InvalidOption("thinking_budget", options.thinking_budget, "given inside separate_reasoning(...)")
    if node.reasoning is not None and "structural_tag" not in enforced:
        if constraint is not None:
            yield UnsupportedConstraint("", constraint.kind, f"{model} does not enforce it behind reasoning")
        if options.thinking_budget is not None or defaults.thinking_budget is not None:
            yield UnsupportedConstraint("", "thinking_budget", f"{model} does not enforce it")
    heals = defaults.token_healing if options.token_healing is None else options.token_healing
    if heals and "token_healing" not in enforced:
        yield UnsupportedConstraint("", "token_healing", f"{model} does not heal seams")
    if (options.stop_regex or defaults.stop_regex) and "stop_regex" not in enforced:
        yield UnsupportedConstraint("", "stop_regex", f"{model} does not stop at patterns")
