"""MMLU with five shots and HellaSwag with twenty: one prompt a question behind a header that many share."""

from __future__ import annotations

from collections.abc import Sequence

import palmette as pm
from benchmarks.paper.data import LETTERS, Question, Story


def subject_header(subject: str, examples: Sequence[Question]) -> str:
    """What every question of a subject begins with."""
    title = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    return title + "".join(f"{ask(q)} {LETTERS[q.answer]}\n\n" for q in examples)


def ask(question: Question) -> str:
    options = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, question.options, strict=True))
    return f"{question.text}\n{options}Answer:"


@pm.function
def mmlu(s: pm.State, header: str, question: str) -> None:
    s += header
    s += question + pm.gen("answer", max_tokens=1)


def story_header(examples: Sequence[Story]) -> str:
    """Stories with their right ending."""
    return "".join(f"{begin(story)} {story.endings[story.answer]}\n\n" for story in examples)


def begin(story: Story) -> str:
    return f"{story.activity}: {story.context}"


@pm.function
def hellaswag(s: pm.State, header: str, beginning: str, endings: Sequence[str]) -> None:
    s += header
    s += beginning + pm.select("ending", list(endings))
