"""The `palmette` command. The only module that imports typer; everything it does is a few calls into the package."""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from palmette import __version__
from palmette.errors import PalmetteError, ReplayMismatch, UsageError
from palmette.lang.program import Program
from palmette.lang.record import read_record, replay

app = typer.Typer(help="Structured LLM programs on a local runtime.", no_args_is_help=True, add_completion=False)

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


@app.command("trace")
def trace_command(program: ProgramArg) -> None:
    """Print a program as data, without a model."""
    trace = load_program(program).trace()
    trace.verify()
    typer.echo(str(trace))


@app.command("version")
def version_command() -> None:
    """Print the version."""
    typer.echo(__version__)


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
