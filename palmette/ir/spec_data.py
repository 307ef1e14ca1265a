"""Specifications of constraints (`palmette.specs`) as JSON data and back, equal.

    JsonSchema('{"type": "string"}')  <->  {"spec": "JsonSchema", "text": '{"type": "string"}', "options": {...}}

Data from elsewhere is not trusted: what it holds must have the type of its field. Specifications are at most
`MAX_SPEC_DEPTH` deep, so this may recurse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_args

from palmette.errors import UsageError
from palmette.specs import SchemaOptions, Spec, Tag

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (*get_args(Spec), SchemaOptions, Tag)}
SPEC_TYPES: tuple[type[Any], ...] = get_args(Spec)


def spec_data(spec: Spec) -> dict[str, Any]:
    """A specification as data that JSON can hold."""
    data: dict[str, Any] = _data(spec)
    return data


def spec_of(data: Mapping[str, Any]) -> Spec:
    """The specification behind `spec_data`.

    Raises:
        UsageError: the data is none.
        InvalidOption, UnsupportedConstraint: one that cannot be.
    """
    made = _made(data)
    if not isinstance(made, SPEC_TYPES):
        raise UsageError(f"{type(made).__name__} is no specification")
    spec: Spec = made
    return spec


def _data(value: Any) -> Any:
    if is_dataclass(value):
        return {"spec": type(value).__name__, **{f.name: _data(getattr(value, f.name)) for f in fields(value)}}
    return [_data(item) for item in value] if isinstance(value, tuple) else value


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_made(item) for item in value)
    if not isinstance(value, Mapping):
        return value
    kind = _KINDS.get(str(value.get("spec")))
    if kind is None:
        raise UsageError(f"unknown specification {value.get('spec')!r}")
    given = {name: _made(item) for name, item in value.items() if name != "spec"}
    unknown = sorted(given.keys() - {field.name for field in fields(kind)})
    if unknown:
        raise UsageError(f"{kind.__name__} has no field {unknown[0]!r}")
    for field in fields(kind):
        if field.name in given and not _fits(str(field.type), given[field.name]):
            raise UsageError(f"{kind.__name__}.{field.name} cannot be {given[field.name]!r}")
    missing = sorted(f.name for f in fields(kind) if f.name not in given and _is_required(f))
    if missing:
        raise UsageError(f"{kind.__name__} needs a field {missing[0]!r}")
    return kind(**given)


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _fits(annotation: str, value: Any) -> bool:
    """Whether a value is of a field's type, as specs.py writes it."""
    if annotation.startswith("tuple["):
        inner = annotation[len("tuple[") : -len(", ...]")]
        return isinstance(value, tuple) and all(_fits(inner, item) for item in value)
    return any(_is_of(part, value) for part in annotation.split(" | "))


def _is_of(name: str, value: Any) -> bool:
    simple = {"str": str, "bool": bool, "None": type(None), "SchemaOptions": SchemaOptions, "Tag": Tag}
    if name == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, SPEC_TYPES if name == "Spec" else simple[name])
