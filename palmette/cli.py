"""The `palmette` command. The only module that imports typer; everything it does is a few calls into the package."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palmette import __version__
from palmette.errors import ModelNotFound, PalmetteError, ReplayMismatch, UnsupportedConstraint, UsageError
from palmette.lang.program import Program
from palmette.lang.record import read_record, replay
from palmette.runtime.server.config import ServerConfig
from palmette.specs import Grammar, JsonSchema, Regex, SchemaOptions, Spec

if TYPE_CHECKING:  # numpy and the runtime are loaded when a command needs them
    from palmette.fsm.cursor import Encode
    from palmette.fsm.vocabulary import Vocabulary

app = typer.Typer(help="Structured LLM programs on a local runtime.", no_args_is_help=True, add_completion=False)

_SERVER = ServerConfig()

ProgramArg = Annotated[
    str, typer.Argument(metavar="FILE:NAME", help="a program in a Python file, examples/judge.py:judge")
]


@app.command("replay")
def replay_command(
    record: Annotated[Path, typer.Argument(help="a file written by run(record=...)")],
    program: ProgramArg,
    model: Annotated[str, typer.Option(help="what the Runtime is built from")] = "smollm2",
) -> None:
    """Run a recorded program again and show the first difference, if there is one. Exit 1 if there is."""
    from palmette.interpreter.backends.local import Runtime

    recorded = read_record(record)
    found = load_program(program)
    with Runtime(model_path=model) as runtime:
        try:
            again = replay(recorded, found, runtime)
        except ReplayMismatch as difference:
            typer.echo(f"different: {difference}")
            raise typer.Exit(1) from None
    tokens = sum(len(hole["token_ids"]) for hole in again["holes"])
    typer.echo(f"same: {len(again['holes'])} holes, {tokens} tokens")


@app.command("serve")
def serve_command(
    model: Annotated[str, typer.Option(help="a .gguf file, a directory, smollm2, tiny or a hub name")] = "smollm2",
    host: Annotated[str, typer.Option(help="beyond the loopback only with an API key")] = _SERVER.host,
    port: Annotated[int, typer.Option(help="0 = any free one")] = _SERVER.port,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="PALMETTE_API_KEY", help="each is a tenant with a cache of its own; may be repeated"),
    ] = None,
    admin_key: Annotated[str, typer.Option(envvar="PALMETTE_ADMIN_KEY", help="for what touches every client")] = "",
    allowed_host: Annotated[list[str] | None, typer.Option(help="a name this server is reached by; * = any")] = None,
    served_model_name: Annotated[str, typer.Option(help="what clients call the model")] = "",
    embeddings: Annotated[bool, typer.Option("--embeddings", help="the model was trained for embeddings")] = False,
    chat_template: Annotated[Path | None, typer.Option(help="a Jinja file to use instead of the model's own")] = None,
    tool_format: Annotated[str, typer.Option(help="how tool calls are written, if the template does not tell")] = "",
    reasoning_format: Annotated[str, typer.Option(help="whose reasoning is split off the answer")] = "",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", help="NAME=VALUE of a Runtime option (kv_tokens, policy, ...) or a limit"),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or int8")] = "auto",
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error")] = "info",
) -> None:
    """Serve a model over HTTP: OpenAI's API and SGLang's. Ends with SIGTERM or Ctrl-C, after what runs."""
    from palmette.runtime.server.options import server_options
    from palmette.runtime.server.supervisor import serve

    logging.basicConfig(level=log_level.upper(), format="%(levelname)s: %(message)s", stream=sys.stderr, force=True)
    runtime, limits = server_options(model, ["dtype=" + dtype, *(option or ())])
    config = ServerConfig(
        runtime, host=host, port=port, api_keys=tuple(api_key or ()), admin_key=admin_key,
        allowed_hosts=tuple(allowed_host or ()), served_model_name=served_model_name, embeddings=embeddings,
        chat_template=chat_template.read_text() if chat_template else "", tool_format=tool_format,
        reasoning_format=reasoning_format, limits=limits,
    )  # fmt: skip
    serve(config, lambda url: typer.echo(f"palmette serves {model} at {url}"), log_level=log_level)


@app.command("doctor")
def doctor_command() -> None:
    """Say which code computes here, and why not a faster one."""
    from palmette.doctor import examine

    for finding in examine():
        typer.echo(str(finding))


@app.command("trace")
def trace_command(program: ProgramArg) -> None:
    """Print a program as data, without a model."""
    trace = load_program(program).trace()
    trace.verify()
    typer.echo(str(trace))


class Kind(Enum):
    """What a constraint is written in."""

    REGEX = "regex"
    SCHEMA = "schema"
    GRAMMAR = "grammar"


@app.command("fsm")
def fsm_command(
    source: Annotated[
        str, typer.Argument(metavar="REGEX|SCHEMA", help="a regex, a JSON schema, a file of either, or - for stdin")
    ],
    kind: Annotated[
        Kind | None, typer.Option("--kind", help="what it is; guessed from the file's name and the text otherwise")
    ] = None,
    regex: Annotated[bool, typer.Option("--regex", help="short for --kind regex")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="short for --kind schema")] = False,
    grammar: Annotated[bool, typer.Option("--grammar", help="short for --kind grammar")] = False,
    model: Annotated[
        str | None, typer.Option(help="whose vocabulary; 'bytes' = one token per byte  [default: smollm2, else bytes]")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="states to explore")] = 500,
    compact: Annotated[bool, typer.Option("--compact", help="JSON without blanks between its parts")] = False,
    whitespace: Annotated[int, typer.Option(min=0, help="further whitespace allowed in JSON, in characters")] = 0,
    lenient: Annotated[bool, typer.Option("--lenient", help="leave out keywords that cannot be enforced")] = False,
    svg: Annotated[Path | None, typer.Option(help="draw the compressed automaton into this file")] = None,
    dot: Annotated[Path | None, typer.Option(help="the same as text for graphviz")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Look at a constraint: its automaton, what it forces, its masks. Exit 1 if it is refused."""
    from palmette.fsm.drawing import to_dot, to_svg
    from palmette.fsm.report import measure, refusal_text, to_text

    flags = {Kind.REGEX: regex, Kind.SCHEMA: schema, Kind.GRAMMAR: grammar}
    named = {*([kind] if kind else []), *(k for k, is_set in flags.items() if is_set)}
    if len(named) > 1:
        raise UsageError(f"the constraint cannot be {' and '.join(sorted(k.value for k in named))} at once: name one")
    options = SchemaOptions(compact=compact, whitespace=whitespace, strict=not lenient)
    spec = read_spec(source, next(iter(named), None), options)
    vocabulary, encode = load_vocabulary(model)
    try:
        report, graph = measure(spec, vocabulary, limit=limit, clock=time.perf_counter, encode=encode)
    except UnsupportedConstraint as refused:
        typer.echo(refusal_text(refused), err=True)
        raise typer.Exit(1) from None
    typer.echo(json.dumps(report.as_dict(), ensure_ascii=False, indent=2) if as_json else to_text(report))
    for path, draw in ((svg, to_svg), (dot, to_dot)):
        if path is not None:
            path.write_text(draw(graph), encoding="utf-8")
            typer.echo(f"drawn into {path}", err=True)


@app.command("version")
def version_command() -> None:
    """Print the version."""
    typer.echo(__version__)


def read_spec(source: str, kind: Kind | None, options: SchemaOptions) -> Spec:
    """The specification that `source` names: - is stdin, an existing file its text, anything else stands for itself.

    Raises:
        UsageError: the file cannot be read as text.
    """
    text, suffix = source, ""
    try:
        if source == "-":
            text = sys.stdin.read()
        elif "\n" not in source and len(source) < 1024 and Path(source).is_file():
            text, suffix = Path(source).read_text(encoding="utf-8"), Path(source).suffix
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{source} cannot be read: {error}") from None
    kind = kind or guess_kind(text, suffix)
    if kind is Kind.SCHEMA:
        return JsonSchema(text, options)
    # An editor ends a file with a newline, which is no part of a pattern.
    return Grammar(text) if kind is Kind.GRAMMAR else Regex(text.removesuffix("\n") if text is not source else text)


def guess_kind(text: str, suffix: str) -> Kind:
    """What a text is, by its file's suffix and by whether it is a JSON object."""
    if suffix in (".gbnf", ".ebnf", ".lark"):
        return Kind.GRAMMAR
    if suffix == ".json":
        return Kind.SCHEMA
    if text.lstrip().startswith("{"):
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return Kind.REGEX
        return Kind.SCHEMA
    return Kind.REGEX


def load_vocabulary(model: str | None) -> tuple[Vocabulary, Encode | None]:
    """A model's vocabulary and tokenizer, without its weights. None = the embedded model, or bytes where it is missing.

    Raises:
        ModelNotFound, CorruptModel, UnsupportedFeature
    """
    from palmette.fsm.vocabulary import Vocabulary

    if model != "bytes":
        from palmette.runtime.models.gguf import GGUFFile
        from palmette.runtime.models.gguf_tokenizer import gguf_tokenizer
        from palmette.runtime.models.hf_tokenizer import directory_tokenizer
        from palmette.runtime.models.load import EMBEDDED, find_model

        try:
            path, _ = find_model(model or EMBEDDED)
        except ModelNotFound:
            if model:
                raise
        else:
            tokenizer = gguf_tokenizer(GGUFFile(path)) if path.is_file() else directory_tokenizer(path)
            tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]

            def encode(data: bytes) -> list[int] | None:
                try:
                    return tokenizer.encode(data.decode())
                except UnicodeDecodeError:
                    return None

            return Vocabulary(tokens, eos_ids=tokenizer.eos_ids), encode
    return Vocabulary([*(bytes([b]) for b in range(256)), b""], eos_ids=[256]), lambda data: list(data)


def load_program(name: str) -> Program:
    """The program that FILE:NAME names. Runs the file, which is the caller's own.

    Raises:
        UsageError: no such file or name, or the name is no program.
    """
    path, _, attribute = name.rpartition(":")
    file = Path(path)
    if not path or not file.is_file():
        raise UsageError(f"{name!r} does not name a program: write FILE:NAME with an existing Python file")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.resolve().parent))
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found = getattr(module, attribute, None)
    if not isinstance(found, Program):
        raise UsageError(f"{attribute!r} in {path} is no program: decorate the function with @palmette.function")
    return found


def main() -> None:
    """Entry point: errors of the package become one line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except PalmetteError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
