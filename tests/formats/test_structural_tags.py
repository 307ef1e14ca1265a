"""Structural tags as users of other systems write them, and as specifications."""

from __future__ import annotations

import json
from typing import Any

import pytest

import palmette as pm
from palmette.formats.structural_tags import ANY_TEXT, structural_spec
from palmette.ir import dumps, loads
from palmette.specs import Concat, Grammar, JsonSchema, OneOf, Regex, Repeated, SchemaOptions, Tag, Tagged
from palmette.testing import ScriptedBackend, tiny_runtime
from tests.lang.walks import accepts, compiled

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
ADD = {"begin": "<function=add>", "schema": NUMBER, "end": "</function>"}
SUB = {"begin": "<function=sub>", "schema": json.dumps(NUMBER), "end": "</function>"}
TAGS = {"type": "structural_tag", "structures": [ADD, SUB], "triggers": ["<function="]}
SPEC = Tagged(
    (
        Tag("<function=add>", JsonSchema.of(NUMBER), "</function>"),
        Tag("<function=sub>", JsonSchema(json.dumps(NUMBER)), "</function>"),
    ),
    ("<function=",),
)
CALL = '<function=add>{"n": 1}</function>'


@pm.function
def tagged(s: pm.State, tag: Any) -> None:
    s += "q" + pm.gen("x", structural_tag=tag)


@pytest.mark.parametrize("tag", [TAGS, json.dumps(TAGS), SPEC])
def test_tags_stand_in_free_text(tag: Any) -> None:
    assert structural_spec(tag) == SPEC
    text = f"First {CALL}, then"
    assert tagged.run(tag, backend=ScriptedBackend([text]))["x"] == text
    with pytest.raises(pm.RequestError, match="does not satisfy"):
        tagged.run(tag, backend=ScriptedBackend(["<function=mul>{}</function>"]))


def form(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


AB = form("regex", pattern="[ab]+")
TAG = form("tag", begin="<a>", content=AB, end="</a>")


@pytest.mark.parametrize(
    ("format_", "spec"),
    [
        (form("const_string", value="x"), Concat(("x",))),
        (form("json_schema", json_schema=NUMBER), JsonSchema.of(NUMBER)),
        (AB, Regex("[ab]+")),
        (form("grammar", grammar='root ::= "a"'), Grammar('root ::= "a"')),
        (form("any_text"), ANY_TEXT),
        (form("sequence", elements=[AB, form("const_string", value="x")]), Concat((Regex("[ab]+"), Concat(("x",))))),
        (form("or", elements=[AB, form("any_text", excludes=[])]), OneOf((Regex("[ab]+"), ANY_TEXT))),
        (TAG, Concat(("<a>", Regex("[ab]+"), "</a>"))),
        (
            form("triggered_tags", triggers=["<a"], tags=[TAG], at_least_one=True),
            Tagged((Tag("<a>", Regex("[ab]+"), "</a>"),), ("<a",), at_least_one=True),
        ),
        (
            form("triggered_tags", triggers=["<a>"], tags=[{**TAG, "content": form("any_text")}]),
            Tagged((Tag("<a>", None, "</a>"),), ("<a>",)),
        ),
        (
            form("tags_with_separator", tags=[TAG], separator=",", at_least_one=True),
            Repeated(OneOf((Concat(("<a>", Regex("[ab]+"), "</a>")),)), 1, None, ","),
        ),
        (form("optional", content=AB), Repeated(Regex("[ab]+"), 0, 1)),
        (form("plus", content=AB), Repeated(Regex("[ab]+"), 1)),
        (form("star", content=AB), Repeated(Regex("[ab]+"))),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_formats_become_specifications(format_: dict[str, Any], spec: Any) -> None:
    made = structural_spec({"type": "structural_tag", "format": format_})
    assert made == spec
    pm.gen("x", structural_tag={"type": "structural_tag", "format": format_})


def test_tags_one_behind_the_other() -> None:
    value = {"type": "structural_tag", "format": form("tags_with_separator", tags=[TAG], separator=", ")}
    constraint = compiled(structural_spec(value))
    assert accepts(constraint, "<a>ab</a>, <a>b</a>")
    assert accepts(constraint, "")
    assert not accepts(constraint, "<a>ab</a><a>b</a>")


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (3, pm.InvalidOption, "structural_tag"),
        ("{", pm.InvalidOption, "JSON"),
        ({"type": "tags"}, pm.InvalidOption, "structural_tag"),
        ({"type": "structural_tag", "structures": [ADD]}, pm.InvalidOption, "triggers"),
        ({**TAGS, "structures": [{"begin": "<function="}]}, pm.InvalidOption, "structures/0"),
        ({**TAGS, "structures": [ADD | {"end": 3}]}, pm.InvalidOption, "end"),
        ({**TAGS, "triggers": "<function="}, pm.InvalidOption, "list of texts"),
        ({**TAGS, "triggers": ["<other"]}, pm.InvalidOption, "begin"),
        ({**TAGS, "more": 1}, pm.UnsupportedConstraint, "/more"),
        ({"type": "structural_tag", "format": form("dispatch")}, pm.UnsupportedConstraint, "no format 'dispatch'"),
        ({"type": "structural_tag", "format": form("any_text", max_chars=3)}, pm.UnsupportedConstraint, "max_chars"),
        ({"type": "structural_tag", "format": form("any_text", excludes=["a"])}, pm.UnsupportedConstraint, "excludes"),
        ({"type": "structural_tag", "format": {**TAG, "content": form("any_text")}}, pm.UnsupportedConstraint, "tag"),
        (
            {"type": "structural_tag", "format": form("json_schema", json_schema={"type": "object", "not": {}})},
            pm.UnsupportedConstraint,
            "cannot be enforced",
        ),
    ],
)
def test_what_would_not_be_enforced_is_refused(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pm.gen("x", structural_tag=value)


def test_a_tag_inside_itself_for_ever_is_refused() -> None:
    inner: dict[str, Any] = AB
    for _ in range(3000):
        inner = form("star", content=inner)
    with pytest.raises(pm.UnsupportedConstraint, match="nested deeper"):
        pm.gen("x", structural_tag={"type": "structural_tag", "format": inner})


@pytest.mark.parametrize("value", [TAGS, json.dumps(TAGS), SPEC])
def test_a_tagged_hole_comes_back_from_the_ir(value: Any) -> None:
    graph = tagged.trace(value).graph
    assert loads(dumps(graph)) == graph


def test_a_schema_with_options_comes_back_from_the_ir() -> None:
    @pm.function
    def program(s: pm.State) -> None:
        s += pm.gen("x", json_schema=JsonSchema.of(NUMBER, SchemaOptions(compact=True, whitespace=2)))

    graph = program.trace().graph
    assert loads(dumps(graph)) == graph


def test_the_engine_holds_a_model_to_them() -> None:
    spec = compiled(SPEC)
    with tiny_runtime(kv_tokens=1 << 13) as runtime:
        for seed in range(3):
            text = tagged.run(TAGS, max_tokens=50, temperature=1.5, seed=seed, backend=runtime)["x"]
            assert accepts(spec, text)
    with pm.Engine("tiny") as engine:
        made = engine.generate("a", {"structural_tag": json.dumps(TAGS), "max_new_tokens": 40, "seed": 1})
        assert accepts(spec, made["text"])
