"""The keyword table of docs/json-schema.md, row by row: enforced, or refused with pointer, keyword, reason and hint."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from palmette.errors import UnsupportedConstraint
from palmette.fsm.dfa import Subset, matches
from palmette.fsm.language import to_language
from palmette.fsm.limits import Limits
from palmette.fsm.schema.source import Source
from palmette.specs import JsonSchema, SchemaOptions
from tests.fsm.languages import automaton


def schema_automaton(schema: Any, options: SchemaOptions | None = None) -> Subset:
    language, _ = to_language(JsonSchema.of(schema, options), Limits())
    return automaton(language.start, dict(language.rules))


OBJECT = {"type": "object", "additionalProperties": False}
# (keyword, schema, texts that are in its language, texts that are not)
ENFORCED: list[tuple[str, Any, list[str], list[str]]] = [
    ("type", {"type": "string"}, ['"a"', '"\\n"', '"é"'], ["1", '"a', '"\n"', '"\\x"']),
    ("type", {"type": ["null", "boolean"]}, ["null", "true"], ["0", '"true"']),
    ("type", {"type": "integer"}, ["0", "-17", "100"], ["1.5", "01", "+1", "-0", "1e3"]),
    ("type", {"type": "number"}, ["0", "-1.5", "1e10", "2.5E-3"], ["01", ".5", "1.", "NaN"]),
    ("enum", {"enum": [1, "a", None, [1, 2], {"b": 1.50}]}, ["1", '"a"', "null", "[1, 2]", '{"b": 1.5}'], ["2", "[1]"]),
    ("enum", {"enum": [1, 5, "x"], "type": "integer", "minimum": 2}, ["5"], ["1", '"x"']),
    ("const", {"const": "a\"b"}, ['"a\\"b"'], ['"ab"']),
    ("properties", {**OBJECT, "properties": {"a": {"type": "null"}, "b": True}},
     ["{}", '{"a": null}', '{"b": 3}', '{"a": null, "b": []}'],
     ['{"b": 1, "a": null}', '{"a": 1}', '{"c": 1}', '{"a":null}']),
    ("required", {**OBJECT, "properties": {"a": True, "b": True}, "required": ["b"]}, ['{"b": 1}', '{"a": 1, "b": 2}'],
     ["{}", '{"a": 1}']),
    ("required", {"type": "object", "required": ["z"], "additionalProperties": {"type": "null"}}, ['{"z": null}'],
     ["{}", '{"z": 1}']),
    ("additionalProperties", {"properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "boolean"}},
     ['{"a": null, "c": true}', '{"c": true, "d": false}', "3"], ['{"c": 1}', '{"a": true}']),
    ("patternProperties", {**OBJECT, "patternProperties": {"^x": {"type": "null"}, "^y": {"type": "boolean"}}},
     ['{"x1": null, "y": true}', "{}"], ['{"x": true}', '{"z": null}']),
    ("patternProperties", {"type": "object", "patternProperties": {"a": {"minimum": 2}, "b": {"maximum": 5}}},
     ['{"ab": 3}', '{"b": 1}', '{"a": 9}', '{"c": 0}'], ['{"ab": 1}', '{"ab": 6}']),
    ("propertyNames", {"type": "object", "propertyNames": {"maxLength": 2}}, ['{"ab": 1}'], ['{"abc": 1}']),
    ("minProperties", {**OBJECT, "properties": {"a": True, "b": True, "c": True}, "minProperties": 2},
     ['{"a": 1, "c": 1}'], ["{}", '{"b": 1}']),
    ("maxProperties", {"type": "object", "maxProperties": 1}, ["{}", '{"a": 1}'], ['{"a": 1, "b": 1}']),
    ("dependentRequired", {**OBJECT, "properties": {"a": True, "b": True}, "dependentRequired": {"a": ["b"]}},
     ["{}", '{"b": 1}', '{"a": 1, "b": 1}'], ['{"a": 1}']),
    ("dependentSchemas", {**OBJECT, "properties": {"a": True, "b": {}}, "dependentSchemas": {"a": {"required": ["b"]}}},
     ["{}", '{"a": 1, "b": 1}'], ['{"a": 1}']),
    ("items", {"type": "array", "items": {"type": "integer"}}, ["[]", "[1]", "[1, 2]"], ['["a"]', "[1,2]"]),
    ("prefixItems", {"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": False},
     ["[]", "[null]", "[null, true]"], ["[true]", "[null, true, 1]"]),
    ("minItems", {"type": "array", "items": {"type": "null"}, "minItems": 2}, ["[null, null]"], ["[]", "[null]"]),
    ("maxItems", {"type": "array", "items": {"type": "null"}, "maxItems": 1}, ["[]", "[null]"], ["[null, null]"]),
    ("contains", {"type": "array", "contains": {"const": 7}}, ["[7]", "[1, 7, 2]"], ["[]", "[1]"]),
    ("uniqueItems", {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True}, ["[]", '["b", "a"]'],
     ['["a", "a"]', '["a", "b", "a"]']),
    ("minLength", {"type": "string", "minLength": 2}, ['"ab"', '"é日"', '"\\n\\""'], ['"a"', '"é"']),
    ("maxLength", {"type": "string", "maxLength": 2}, ['""', '"日本"', '"\\n\\n"'], ['"abc"']),
    ("pattern", {"type": "string", "pattern": "a.c"}, ['"abc"', '"xxabcxx"', '"a\\"c"'], ['"ac"', '"a\\nc"']),
    ("pattern", {"type": "string", "pattern": "^[a-z]+$", "maxLength": 3}, ['"abc"'], ['"abcd"', '"A"', '""']),
    ("minimum", {"type": "integer", "minimum": -3}, ["-3", "0", "12"], ["-4", "-10"]),
    ("maximum", {"type": "number", "maximum": 2.5}, ["2.5", "-100", "2.49"], ["2.51", "3"]),
    ("exclusiveMinimum", {"type": "number", "exclusiveMinimum": 0}, ["0.001", "5"], ["0", "-1", "0.0"]),
    ("exclusiveMaximum", {"type": "integer", "exclusiveMaximum": 10}, ["9", "-10"], ["10", "11"]),
    ("multipleOf", {"type": "integer", "multipleOf": 7}, ["0", "14", "-21"], ["1", "15"]),
    ("multipleOf", {"type": "number", "multipleOf": 0.25}, ["0.5", "1", "-2.75"], ["0.3", "1.1"]),
    ("anyOf", {"anyOf": [{"type": "null"}, {"const": 1}]}, ["null", "1"], ["2"]),
    ("anyOf", {"type": "object", "required": ["a"],
               "anyOf": [{"properties": {"a": {"const": 1}}}, {"required": ["b"]}]},
     ['{"a": 1}', '{"a": 2, "b": 0}'], ["{}", '{"a": 2}']),
    ("oneOf", {"oneOf": [{"type": "string"}, {"type": "null"}]}, ['"a"', "null"], ["1"]),
    ("oneOf", {"oneOf": [{"type": "integer"}, {"minimum": 2, "type": "number"}]}, ["1", "2.5"], ["3", "1.5"]),
    ("allOf", {"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 4}]}, ["2", "4"], ["1", "5", "2.5"]),
    ("not", {"type": "string", "not": {"enum": ["a", "b"]}}, ['"c"', '"ab"'], ['"a"', '"b"']),
    ("not", {"type": "number", "not": {"minimum": 3}}, ["2", "2.999"], ["3", "4"]),
    ("not", {"not": {"type": ["object", "array", "string"]}}, ["1", "null"], ["{}", '"a"']),
    ("if", {"type": "object", "properties": {"k": {"enum": [1, 2]}, "v": True}, "required": ["k"],
            "if": {"properties": {"k": {"const": 1}}}, "then": {"required": ["v"]}}, ['{"k": 2}', '{"k": 1, "v": 0}'],
     ['{"k": 1}', '{"k": 3}']),
    ("$ref", {"$defs": {"t": {"type": "null"}}, "type": "array", "items": {"$ref": "#/$defs/t"}}, ["[null]"], ["[1]"]),
    ("$ref", {"$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}},
                              "additionalProperties": False}}, "$ref": "#/$defs/n"},
     ["{}", '{"next": {"next": {}}}'], ['{"next": 1}', '{"next": {"next": {}}']),
    ("$anchor", {"$defs": {"t": {"$anchor": "here", "const": 1}}, "$ref": "#here"}, ["1"], ["2"]),
    ("boolean schemas", {**OBJECT, "properties": {"a": True, "b": False}}, ['{"a": {"x": [1]}}', "{}"], ['{"b": 1}']),
    ("annotations", {"type": "null", "title": "t", "x-own": 1, "$comment": "c", "default": 1}, ["null"], ["1"]),
]  # fmt: skip

# (keyword, schema, pointer)
REFUSED: list[tuple[str, Any, str]] = [
    ("unevaluatedProperties", {"unevaluatedProperties": False}, ""),
    ("unevaluatedItems", {"properties": {"a": {"unevaluatedItems": False}}}, "/properties/a"),
    ("maxContains", {"contains": {}, "maxContains": 1}, ""),
    ("nullable", {"type": "string", "nullable": True}, ""),
    ("$ref", {"$ref": "https://example.com/other.json"}, ""),
    ("$ref", {"$ref": "#/$defs/missing"}, "/$defs/missing"),
    ("$ref", {"$ref": "#"}, ""),
    ("$ref", {"allOf": [{"$ref": "#"}]}, ""),
    ("$dynamicRef", {"$dynamicRef": "#n"}, ""),
    ("uniqueItems", {"type": "array", "uniqueItems": True}, ""),
    ("contains", {"prefixItems": [True], "contains": {"const": 1}}, "/contains"),
    ("format", {"type": "string", "format": "iri"}, ""),
    ("pattern", {"type": "string", "pattern": "(a)\\1"}, ""),
    ("not patternProperties", {"not": {"patternProperties": {"a": {"type": "null"}}}}, "/not"),
    ("multipleOf", {"type": "integer", "multipleOf": 1234567}, ""),
    ("type", {"type": "float"}, ""),
    ("empty language", {"type": "string", "minLength": 3, "maxLength": 2}, ""),
    ("empty language", False, ""),
]


@pytest.mark.parametrize(("keyword", "schema", "accepted", "rejected"), ENFORCED)
def test_the_keyword_is_enforced(keyword: str, schema: Any, accepted: list[str], rejected: list[str]) -> None:
    machine = schema_automaton(schema)
    assert [t for t in accepted if not matches(machine, t.encode())] == []
    assert [t for t in rejected if matches(machine, t.encode())] == []


@pytest.mark.parametrize(("keyword", "schema", "pointer"), REFUSED)
def test_what_is_not_enforced_is_refused_with_its_place(keyword: str, schema: Any, pointer: str) -> None:
    with pytest.raises(UnsupportedConstraint) as caught:
        schema_automaton(schema)
    assert (caught.value.keyword, caught.value.path) == (keyword, pointer)
    assert caught.value.reason


FORMATS = {
    "date": (["2024-02-29", "2000-02-29", "1999-12-31"], ["2023-02-29", "1900-02-29", "2024-13-01", "2024-04-31"]),
    "time": (["12:00:00Z", "23:59:60+01:30", "00:00:00.5z"], ["24:00:00Z", "12:00:00", "12:60:00Z"]),
    "date-time": (["2024-02-29T12:00:00Z"], ["2024-02-29", "2024-02-29 12:00:00Z"]),
    "duration": (["P1D", "PT1H30M", "P2W", "P1Y2M3DT4H5M6S"], ["P", "1D", "PT", "P1H"]),
    "email": (["a.b@example.com", "x+y@host"], ["a@", "@b", "a b@c", "a..b@c"]),
    "hostname": (["example.com", "a-b.c", "x"], ["-a", "a-", "a..b", "xn--abc", "a" * 64]),
    "ipv4": (["1.2.3.4", "255.255.255.255"], ["256.1.1.1", "1.2.3", "01.2.3.4"]),
    "ipv6": (["::", "::1", "1::8", "1:2:3:4:5:6:7:8", "::ffff:1.2.3.4"], ["1:2:3", "1::2::3", ":::", "g::"]),
    "uuid": (["123e4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000"]),
    "uri": (["http://a.b/c?d#e", "urn:x:y", "mailto:a@b"], ["//a", "a", "http://a b"]),
    "uri-reference": (["/a/b", "a", "", "//h:80/x"], ["a b", "1:b"]),
    "json-pointer": (["", "/a/~0~1"], ["a", "/~2"]),
    "relative-json-pointer": (["0", "1/a", "2#"], ["/a", "01"]),
}


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_format_is_enforced(name: str) -> None:
    machine = schema_automaton({"type": "string", "format": name})
    good, bad = FORMATS[name]
    assert [t for t in good if not matches(machine, f'"{t}"'.encode())] == []
    assert [t for t in bad if matches(machine, f'"{t}"'.encode())] == []


def test_an_unknown_format_is_an_annotation_and_is_listed() -> None:
    _, unenforced = to_language(JsonSchema.of({"properties": {"a": {"format": "grid"}}}), Limits())
    assert unenforced == ("/properties/a format=grid",)


def test_strict_false_leaves_a_keyword_to_a_later_check_and_names_it() -> None:
    options = SchemaOptions(strict=False)
    _, unenforced = to_language(JsonSchema.of({"type": "array", "uniqueItems": True}, options), Limits())
    assert unenforced == (" uniqueItems",)


def test_separators_and_whitespace_follow_the_options() -> None:
    schema = {"type": "array", "items": {"type": "integer"}}
    compact = schema_automaton(schema, SchemaOptions(compact=True))
    assert matches(compact, b"[1,2]")
    assert not matches(compact, b"[1, 2]")
    loose = schema_automaton(schema, SchemaOptions(compact=True, whitespace=2))
    assert matches(loose, b"[ 1,\n 2  ]")
    assert not matches(loose, b"[   1]")


def test_a_schema_that_is_not_json_is_refused() -> None:
    for text in ["{", '{"a": NaN}', "nonsense"]:
        with pytest.raises(UnsupportedConstraint, match="schema"):
            to_language(JsonSchema(text), Limits())


def test_every_row_of_the_documented_table_has_a_test() -> None:
    page = (Path(__file__).parents[2] / "docs" / "json-schema.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE))
    tested = {k for k, *_ in ENFORCED} | {k for k, *_ in REFUSED} | {f"format: {f}" for f in FORMATS}
    assert len(documented) > 40
    assert documented <= tested, documented - tested


def test_schemas_that_are_written_alike_are_compiled_once_and_mean_what_each_would_mean() -> None:
    text = {"type": "string", "maxLength": 3}
    part: dict[str, Any] = {"type": "object", "properties": {"x": text, "y": {"$ref": "#/$defs/n"}}}
    part |= {"required": ["x"], "additionalProperties": False}
    closed = {"type": "object", "additionalProperties": False}
    many = {**closed, "$defs": {"n": {"type": "integer"}}, "properties": {f"p{i}": part for i in range(30)}}
    source = Source(json.dumps(many), Limits())
    assert {source.child("", "properties", f"p{i}") for i in range(30)} == {"/properties/p0"}
    assert source.resolve("", "#/properties/p7") == "/properties/p0"
    machine = schema_automaton(many)
    for name in ("p0", "p29"):
        assert matches(machine, f'{{"{name}": {{"x": "abc", "y": 5}}}}'.encode())
        assert not matches(machine, f'{{"{name}": {{"x": "abcd"}}}}'.encode())
    true_is_not_one = {**closed, "properties": {"a": {"const": 1}, "b": {"const": True}}, "required": ["a", "b"]}
    assert matches(schema_automaton(true_is_not_one), b'{"a": 1, "b": true}')
    assert not matches(schema_automaton(true_is_not_one), b'{"a": 1, "b": 1}')


def test_schemas_that_are_written_alike_below_different_ids_are_not_one() -> None:
    inner = {"$ref": "#/$defs/x"}
    schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "a": {"$id": "http://a.example/", "$defs": {"x": {"const": 1}}, "type": "integer", "allOf": [inner]},
            "b": {"$id": "http://b.example/", "$defs": {"x": {"const": 2}}, "type": "integer", "allOf": [inner]},
        },
    }
    machine = schema_automaton(schema)
    assert matches(machine, b'{"a": 1, "b": 2}')
    assert not matches(machine, b'{"a": 2}')


def test_what_is_not_enforced_is_said_of_every_place() -> None:
    part = {"type": "object", "properties": {"my name": {"type": "string", "format": "no such format"}}}
    schema = {"type": "object", "properties": {"one": part, "two": part}}
    _, unenforced = to_language(JsonSchema.of(schema))
    below = "properties/my name format=no such format"
    assert sorted(unenforced) == [f"/properties/one/{below}", f"/properties/two/{below}"]


def test_brackets_are_counted_outside_strings_only() -> None:
    deep = "[" * 2000
    for text in (json.dumps({"const": deep}), json.dumps({"const": '"\\' + deep}), json.dumps({"title": "\\"})):
        assert schema_automaton(json.loads(text)).start
    with pytest.raises(UnsupportedConstraint, match="deeper schemas"):
        Source('{"a": "x\\"", "b": ' + deep, Limits())
