"""Programs that fork: a tree of thoughts, a skeleton of thought, and a judge that branches, solves and merges."""

from __future__ import annotations

from collections.abc import Sequence

import palmette as pm

STAGES = (
    ("Plan", "Propose a high-level plan to solve the problem. Do not compute anything yet."),
    ("Solution", "Carry out the plan step by step and compute all numbers that it needs."),
    ("Check", "Judge the solution: name the weakest step, and say whether the numbers are right."),
    ("Answer", "Considering the check, write the final answer and mention its unit."),
)


@pm.function
def tree_of_thought(s: pm.State, problem: str, fanout: int, length: int) -> None:
    """Every thought is gone on with in `fanout` ways: 2 + 4 + 8 + 16 holes with a fan-out of two."""
    s += pm.user(f"Solve this problem with several plans, and check each of them.\n\n{problem}")
    s += pm.assistant("I will go step by step.")
    _grow(s, STAGES, fanout, length)


def _grow(s: pm.State, stages: Sequence[tuple[str, str]], fanout: int, length: int) -> None:
    if not stages:
        return
    name, instruction = stages[0]
    s += pm.user(instruction)
    with s.fork(fanout) as branches:
        for i, branch in enumerate(branches, 1):  # its number tells a branch from its siblings, since all is greedy
            branch += pm.assistant(f"{name} {i}:" + pm.gen(name.lower(), max_tokens=length))
            _grow(branch, stages[1:], fanout, length)


@pm.function
def skeleton_of_thought(s: pm.State, topic: str, points: int, length: int) -> None:
    """The points first, in a few words each; then all of them are written out at once."""
    s += pm.system("You are a helpful assistant who writes clear, well organised text.")
    s += pm.user(
        f"{topic}\nFirst write only the skeleton of the answer: {points} points of a few words each, without any "
        "details. I will ask for the details of every point afterwards."
    )
    with s.assistant():
        for i in range(1, points + 1):
            s += f"{i}." + pm.gen(f"point{i}", max_tokens=8) + "\n"
    s += pm.user("Write out one point of the skeleton in two sentences. Do not go on with the other points.")
    with s.fork(points) as branches:
        for i, branch in enumerate(branches, 1):
            with branch.assistant():
                branch += f"{i}." + branch[f"point{i}"] + ":" + pm.gen("text", max_tokens=length)


DIMENSIONS = {
    "clarity": "Is it easy to follow, and does every sentence say one thing? Are the paragraphs in a sensible order?",
    "evidence": "Are claims backed by facts, numbers or sources? Name one claim that needs more support.",
    "originality": "Does it say something that has not been said often before? Which idea is the author's own?",
    "style": "Are the words well chosen? Point out one sentence that could be shorter, and one that reads well.",
}


@pm.function
def judge(s: pm.State, essay: str, length: int) -> None:
    """A branch for each dimension (branch), a judgement in it (solve), and a grade over all (merge)."""
    s += pm.system("You are an impartial teacher who judges essays.")
    s += pm.user(f"Here is an essay. I will ask you to judge one dimension of it at a time.\n\n{essay}")
    s += pm.assistant("I have read the essay with care.")
    with s.fork(len(DIMENSIONS)) as branches:
        for (dimension, hint), branch in zip(DIMENSIONS.items(), branches, strict=True):
            branch += pm.user(f"Judge the {dimension} of the essay. {hint}")
            branch += pm.assistant(pm.gen("judgement", max_tokens=length))
    lines = [f"{name}: {text}" for name, text in zip(DIMENSIONS, s["judgement"], strict=True)]
    s += pm.user("These are the judgements.\n" + "\n".join(lines) + "\nSum them up, then grade the essay from A to D.")
    with s.assistant():
        s += (
            "In sum:" + pm.gen("summary", max_tokens=length) + "\nGrade:" + pm.select("grade", [" A", " B", " C", " D"])
        )
