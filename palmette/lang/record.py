"""Run records: what a program was, was given, and produced, as JSON; and replaying one.

A record names its program but never imports it: whoever replays hands the program in.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palmette.errors import ReplayMismatch, UsageError
from palmette.interpreter.budget import Budget
from palmette.interpreter.run import ProgramRun
from palmette.ir import HoleOptions
from palmette.lang.call import RunOptions

if TYPE_CHECKING:  # a program writes its records: types only
    from palmette.lang.program import Program
    from palmette.types import Backend

FORMAT = 1


def make_record(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], run: ProgramRun) -> dict[str, Any]:
    """The record of a finished run."""
    capabilities = run.backend.capabilities
    return {
        "format": FORMAT,
        "program": name,
        "args": list(args),
        "kwargs": dict(kwargs),
        "seed": run.seed,
        "options": {k: v for k, v in asdict(run.options).items() if v is not None},
        "budget": asdict(run.budget),
        "roles": run.roles,
        "model": {"name": capabilities.model, "digest": capabilities.digest},
        "versions": {"palmette": _version("palmette"), "torch": _version("torch"), "python": platform.python_version()},
        "usage": asdict(run.usage),
        "holes": run.record_json(),
    }


def write_record(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Raises UsageError if an argument is no JSON value: it could not be given again."""
    name = record["program"]
    try:
        text = json.dumps(record, indent=1)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the run of {name} cannot be recorded, an argument is no JSON value: {error}") from error
    Path(path).write_text(text + "\n", encoding="utf-8")


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Raises UsageError for a file that is no run record."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no run record: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UsageError(f"{path} is no run record of format {FORMAT}")
    return record


def replay(record: Mapping[str, Any], program: Program, backend: Backend | None = None) -> dict[str, Any]:
    """Run the program again under the record's arguments, options and seed; returns the new record.

    Raises:
        ReplayMismatch: the tokens differ; the message shows the first difference and what else changed.
    """
    options = RunOptions(
        HoleOptions.of(**record["options"]),
        backend=backend,
        seed=record["seed"],
        budget=Budget(**record["budget"]),
        roles=record["roles"],
    )
    state = program.run_with(record["args"], record["kwargs"], options)
    again = make_record(record["program"], record["args"], record["kwargs"], state._stream.run)
    difference = first_difference(record, again)
    if difference is not None:
        raise ReplayMismatch(difference, state=state)
    return again


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first hole, in program order, whose tokens differ; None if there is none."""
    changed = [f"{key} was {old[key]!r}, is {new[key]!r}" for key in ("model", "versions") if old[key] != new[key]]
    note = f" ({'; '.join(changed)})" if changed else ""
    before, after = ({(tuple(h["stream"]), h["hole"], h["sample"]): h for h in r["holes"]} for r in (old, new))
    for key in sorted(before.keys() | after.keys()):
        a, b = before.get(key), after.get(key)
        place = f"stream {list(key[0])}, hole {key[1]}"
        if a is None or b is None:
            which = (a or b or {}).get("name")
            return f"{place} ({which!r}) is {'new' if a is None else 'missing'}{note}"
        if a["token_ids"] != b["token_ids"] or a["text"] != b["text"] or a["name"] != b["name"]:
            pairs = zip(a["token_ids"], b["token_ids"], strict=False)
            shorter = min(len(a["token_ids"]), len(b["token_ids"]))
            at = next((i for i, (x, y) in enumerate(pairs) if x != y), shorter)
            return (
                f"{place} ({a['name']!r}), token {at}: recorded {a['token_ids'][at : at + 4]} {a['text']!r}, "
                f"now {b['token_ids'][at : at + 4]} {b['text']!r}{note}"
            )
    return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"
