"""The paper's public files, where a user has them: MMLU, HellaSwag and GSM8K, into the types of `data`.

    FOLDER/mmlu/dev/SUBJECT_dev.csv     five examples a subject     question, A, B, C, D, letter
    FOLDER/mmlu/test/SUBJECT_test.csv   its questions
    FOLDER/hellaswag*.jsonl             activity_label, ctx, endings, label
    FOLDER/gsm8k*.jsonl                 question, answer

Each is optional: for a file that is not there the caller takes what `data` makes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.paper.data import LETTERS, Problem, Question, Story


def mmlu(folder: Path, subjects: int, each: int, shots: int) -> tuple[dict[str, list[Question]], list[Question]] | None:
    """Examples by subject, and questions through the subjects in turn; None if the folder has no MMLU."""
    files = sorted((folder / "mmlu" / "dev").glob("*_dev.csv"))[:subjects]
    if not files:
        return None
    examples: dict[str, list[Question]] = {}
    asked: list[list[Question]] = []
    for file in files:
        name = file.name.removesuffix("_dev.csv")
        examples[name] = _questions(file, name)[:shots]
        asked.append(_questions(file.parent.parent / "test" / f"{name}_test.csv", name)[:each])
    return examples, [rows[i] for i in range(each) for rows in asked if i < len(rows)]


def hellaswag(folder: Path, count: int) -> list[Story] | None:
    """The first `count` stories; None if the folder has none."""
    found = _lines(folder, "hellaswag*.jsonl")
    if found is None:
        return None
    rows = [row for row, _ in zip(found, range(count), strict=False)]
    return [Story(r["activity_label"], r["ctx"], tuple(r["endings"]), int(r["label"])) for r in rows]


def gsm8k(folder: Path, count: int) -> list[Problem] | None:
    """The first `count` problems; None if the folder has none."""
    found = _lines(folder, "gsm8k*.jsonl")
    if found is None:
        return None
    return [Problem(row["question"], row["answer"]) for row, _ in zip(found, range(count), strict=False)]


def _questions(file: Path, subject: str) -> list[Question]:
    with file.open(encoding="utf-8", newline="") as lines:
        return [
            Question(subject.replace("_", " "), r[0], tuple(r[1:5]), LETTERS.index(r[5])) for r in csv.reader(lines)
        ]


def _lines(folder: Path, pattern: str) -> Iterator[dict[str, Any]] | None:
    files = sorted(folder.glob(pattern))
    if not files:
        return None
    return (json.loads(line) for line in files[0].read_text(encoding="utf-8").splitlines() if line.strip())
