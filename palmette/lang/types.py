"""From a Python type to what a hole's text must satisfy, and from the text to the value.

How values are written stands in written.py and docs/types.md. Loads pydantic at the first use of a type.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from palmette.errors import UnsupportedFeature
from palmette.ir import UnboundType
from palmette.lang.narrow import untitled
from palmette.lang.written import Written, written
from palmette.specs import JsonSchema, Spec


@dataclass(frozen=True, slots=True)
class TypedSpec:
    """A type as a constraint.

    Attributes:
        spec: what the text is held to.
        schema: the type as a JSON schema, as JSON; what the IR stores.
        parse: the value of a text; raises ValueError where a validator of the type refuses it.
        stop: stop strings that end the text, where it has no end of its own.
        is_json: the text itself is JSON, so that its parts can be read while it grows.
    """

    spec: Spec
    schema: str
    parse: Callable[[str], Any] = field(compare=False, repr=False)
    stop: tuple[str, ...] = ()
    is_json: bool = True


def typed(type_: Any) -> TypedSpec:
    """The constraint of a type, made once for each type that can be hashed.

    Raises:
        UnsupportedFeature: pydantic is not installed.
        InvalidOption: not a type that pydantic can read.
        UnsupportedConstraint: a part of it has no form that could be enforced.
    """
    try:
        hash(type_)
    except TypeError:
        return _typed(type_)
    return _typed_once(type_)


def shown_schema(type_: Any) -> dict[str, Any]:
    """Pydantic's own schema of a type without its titles: short, for a model to read.

    Raises as `typed` does.
    """
    typed(type_)
    from palmette.lang.json_types import adapter_of  # pydantic is there: `typed` used it

    schema: dict[str, Any] = untitled(adapter_of(type_).json_schema(mode="validation"))
    return schema


def _typed(type_: Any) -> TypedSpec:
    if isinstance(type_, UnboundType):
        form = written(json.loads(type_.schema))
        return _typed_spec(form, type_.schema, json.loads)
    try:
        from palmette.lang.json_types import adapter_of, read, schema_of  # pydantic comes at its first use
    except ModuleNotFoundError as error:
        if error.name not in ("pydantic", "pydantic_core"):
            raise
        raise UnsupportedFeature("type=", "it needs pydantic: pip install 'pydantic>=2.9'") from None
    adapter = adapter_of(type_)
    schema = schema_of(adapter)
    return _typed_spec(written(schema), json.dumps(schema, ensure_ascii=False), lambda text: read(adapter, text))


def _typed_spec(form: Written, schema: str, read_json: Callable[[str], Any]) -> TypedSpec:
    is_json = isinstance(form.spec, JsonSchema)
    return TypedSpec(form.spec, schema, lambda text: read_json(form.as_json(text)), form.stop, is_json)


_typed_once = lru_cache(maxsize=512)(_typed)
