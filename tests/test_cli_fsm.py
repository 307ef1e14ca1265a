"""`palmette fsm` from the outside: what it prints, draws and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from palmette.cli import Kind, app, guess_kind, load_vocabulary, main
from palmette.errors import ModelNotFound, UsageError

SCHEMA = {
    "type": "object",
    "properties": {"id": {"type": "integer"}},
    "required": ["id"],
    "additionalProperties": False,
}


def fsm(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(app, ["fsm", *arguments, "--model", "bytes"], input=text)


def data(*arguments: str, text: str | None = None) -> dict[str, object]:
    result = fsm(*arguments, "--json", text=text)
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_a_regex_is_reported() -> None:
    result = fsm("ab[0-9]{2}")
    assert result.exit_code == 0
    assert "5 explored; 4 transitions" in result.stdout
    assert "`ab00`" in result.stdout
    assert "257 tokens" in result.stdout


def test_what_the_argument_is_is_guessed(tmp_path: Path) -> None:
    schema, pattern, grammar = tmp_path / "s.json", tmp_path / "pattern.txt", tmp_path / "g.gbnf"
    schema.write_text(json.dumps(SCHEMA))
    pattern.write_text("x{3}\n")
    grammar.write_text('root ::= "no" | "yes"\n')
    assert data(str(schema))["shortest_text"] == '{"id": 0}'
    assert data(json.dumps(SCHEMA))["shortest_text"] == '{"id": 0}'
    assert data("-", text=json.dumps(SCHEMA))["shortest_text"] == '{"id": 0}'
    assert data(str(pattern))["shortest_text"] == "xxx"
    assert data(str(grammar))["shortest_text"] == "no"
    assert guess_kind("{a}", "") is Kind.REGEX
    assert guess_kind("[" * 5, "") is Kind.REGEX
    assert guess_kind('{"a":' * 100_000, "") is Kind.REGEX


def test_it_can_be_said_instead(tmp_path: Path) -> None:
    assert data("true", "--schema", "--limit", "5")["forced_text"] == ""
    assert data('{"a": 1}', "--regex")["shortest_text"] == '{"a": 1}'
    assert data('start: "q"', "--grammar")["shortest_text"] == "q"
    assert data('start: "q"', "--kind", "grammar")["shortest_text"] == "q"
    with pytest.raises(UsageError, match="grammar and regex"):
        CliRunner().invoke(app, ["fsm", "a", "--regex", "--grammar"], catch_exceptions=False)


def test_options_of_a_schema() -> None:
    schema = json.dumps(SCHEMA)
    assert data(schema, "--compact")["shortest_text"] == '{"id":0}'
    assert data(schema, "--whitespace", "3", "--compact")["shortest_text"] == '{"id":0}'
    assert data(schema, "--compact")["states"] != data(schema, "--compact", "--whitespace", "3")["states"]
    unique = '{"type": "array", "uniqueItems": true}'
    assert data(unique, "--lenient", "--limit", "5")["unenforced"] != []


def test_pictures_are_written(tmp_path: Path) -> None:
    svg, dot = tmp_path / "a.svg", tmp_path / "a.dot"
    result = fsm("(yes|no)", "--svg", str(svg), "--dot", str(dot))
    assert result.exit_code == 0
    assert svg.read_text(encoding="utf-8").startswith("<svg")
    assert dot.read_text(encoding="utf-8").startswith("digraph")


def test_a_refusal_names_the_place_and_ends_with_1() -> None:
    result = fsm('{"properties": {"a": {"type": "array", "uniqueItems": true}}}')
    assert result.exit_code == 1
    for part in ("at       /properties/a", "keyword  uniqueItems", "reason", "hint"):
        assert part in result.output
    assert fsm("a(b").exit_code == 1
    assert "offset 1" in fsm("a(b").output


def test_errors_of_use_are_one_line_and_end_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    binary = tmp_path / "b.json"
    binary.write_bytes(b"\xff\xfe\x00")
    for arguments, part in [
        ((str(binary),), "cannot be read"),
        (("([a-c][0-9]){300}", "--limit", "900", "--svg", str(tmp_path / "x.svg")), "--limit"),
        (("a", "--whitespace", "99"), "whitespace=99"),
    ]:
        monkeypatch.setattr("sys.argv", ["palmette", "fsm", *arguments, "--model", "bytes"])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert part in error
        assert error.count("\n") == 1


def test_a_model_that_is_not_there_is_an_error_unless_none_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from palmette.runtime.models import load

    def missing(name: object) -> None:
        raise ModelNotFound(str(name))

    monkeypatch.setattr(load, "find_model", missing)
    with pytest.raises(ModelNotFound):
        load_vocabulary("smollm2")
    vocabulary, encode = load_vocabulary(None)
    assert len(vocabulary) == 257
    assert encode is not None
    assert encode(b"\xffa") == [255, 97]


@pytest.mark.model
def test_the_embedded_models_vocabulary_is_the_default() -> None:
    vocabulary, encode = load_vocabulary(None)
    assert len(vocabulary) == 49152
    assert encode is not None
    assert encode(b"\xff") is None
    ids = encode("Grüße, 12".encode())
    assert ids is not None
    assert b"".join(vocabulary.tokens[t] for t in ids).decode() == "Grüße, 12"
