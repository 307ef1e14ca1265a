"""Inputs in the form of the paper's data sets, made by a seeded script: the same shots, turns, fan-outs and sharing.

Lengths in tokens of the embedded model are those of the originals where it says nothing else; what is scaled down for
a model of 135M parameters on a CPU is said where it is made. Whoever has the original files passes them to
`benchmarks.paper.originals` instead; both give the types of this module.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.paper.world import CITIES, PEOPLE, PLACES, QUALITIES, TRADES, World

LETTERS = "ABCD"


@dataclass(frozen=True, slots=True)
class Question:
    """A question with four options, of one subject (MMLU)."""

    subject: str
    text: str
    options: tuple[str, ...]
    answer: int  # index of the right option


@dataclass(frozen=True, slots=True)
class Story:
    """A beginning with four endings (HellaSwag)."""

    activity: str
    context: str
    endings: tuple[str, ...]
    answer: int  # index of the right ending


@dataclass(frozen=True, slots=True)
class Problem:
    """A word problem with its worked solution (GSM8K)."""

    text: str
    solution: str


@dataclass(frozen=True, slots=True)
class Lookup:
    """A question that takes several look-ups, with what each of them brings back (ReAct on HotpotQA)."""

    question: str
    thoughts: tuple[str, ...]
    actions: tuple[str, ...]
    observations: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Hops:
    """A question, the passages that each search brings, and the answer (multi-hop retrieval)."""

    question: str
    searches: tuple[str, ...]
    passages: tuple[tuple[str, ...], ...]  # for each search
    reasoning: str
    answer: str


# -- questions with options ----------------------------------------------------------------------------------------

SUBJECTS = ("local history", "practical economics", "river geography", "trade law", "crafts and materials", "botany")


def question(seed: int | str, subject: str) -> Question:
    """About 90 tokens with its options."""
    w = World(f"question {seed} {subject}")
    text = f"{w.sentence()} Which of the following statements of {subject} best describes what happened next?"
    options = tuple(_capital(w.clause()) for _ in LETTERS)
    return Question(subject, text, options, w.number(0, 3))


def questions(subjects: int, each: int, shots: int) -> tuple[dict[str, list[Question]], list[Question]]:
    """Examples by subject, and questions that go through the subjects in turn, as a mixed stream of users would."""
    names = [
        SUBJECTS[i % len(SUBJECTS)] + (f" {i // len(SUBJECTS) + 1}" * (i >= len(SUBJECTS))) for i in range(subjects)
    ]
    examples = {name: [question(f"shot {i}", name) for i in range(shots)] for name in names}
    return examples, [question(i, name) for i in range(each) for name in names]


# -- stories with endings ------------------------------------------------------------------------------------------


def story(seed: int | str) -> Story:
    """A beginning of about 35 tokens, endings of about 20."""
    w = World(f"story {seed}")
    activity = f"{w.pick(QUALITIES).capitalize()} {w.pick(TRADES)}s"
    endings = tuple(f"{w.clause()} and then {w.pick(('leaves', 'waits', 'smiles', 'starts again'))}." for _ in LETTERS)
    return Story(activity, f"{w.sentence()} Then", endings, w.number(0, 3))


# -- word problems -------------------------------------------------------------------------------------------------


def problem(seed: int | str) -> Problem:
    """About 60 tokens, with a solution that is right."""
    w = World(f"problem {seed}")
    who, days, price = w.pick(PEOPLE), w.number(3, 9), w.number(2, 12)
    made, kept = w.number(12, 40), w.number(2, 9)
    left = made - kept
    text = (
        f"{who} is a {w.pick(TRADES)} who makes {made} baskets every day. Each morning {who} keeps {kept} of them for "
        f"the family and sells the rest at {w.place()} for {price} dollars each. How many dollars does {who} earn in "
        f"{days} days?"
    )
    solution = (
        f"Each day {who} sells {made} - {kept} = {left} baskets. That brings {left} * {price} = {left * price} dollars "
        f"a day. In {days} days it is {left * price} * {days} = {left * price * days} dollars. The answer is "
        f"{left * price * days}."
    )
    return Problem(text, solution)


# -- look-ups ------------------------------------------------------------------------------------------------------


def lookup(seed: int | str, steps: int) -> Lookup:
    """Observations of about 60 tokens, as the first sentences of an article are."""
    w = World(f"lookup {seed}")
    names = [w.name() for _ in range(steps)]
    question = f"In which year did the {w.pick(TRADES)} who taught {names[0]} leave {w.place()} for {w.pick(CITIES)}?"
    thoughts = tuple(
        f"I need to search {name} and find out who taught at {w.pick(PLACES)} in those years." for name in names
    )
    actions = tuple(f"Search[{name}]" for name in names)
    return Lookup(question, thoughts, actions, tuple(w.paragraph(2) for _ in names), str(w.number(1700, 1999)))


# -- agents of a simulated town ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Moment:
    """One agent at one moment: what a template of the simulation is filled with."""

    name: str
    about: str  # who the agent is; the same for all moments of an agent
    event: str
    place: str


def moments(agents: int, each: int) -> list[Moment]:
    """The town as it runs: at every moment each agent in turn."""
    people = []
    for i in range(agents):
        w = World(f"agent {i}")
        name = w.name()
        about = f"{name} is a {w.pick(QUALITIES)} {w.pick(TRADES)} who lives near {w.pick(PLACES)}. {w.sentence()}"
        people.append((name, about))
    found = []
    for step in range(each):
        for i, (name, about) in enumerate(people):
            w = World(f"moment {i} {step}")
            found.append(
                Moment(name, about, f"{name} {w.pick(('sees', 'hears', 'is told'))} that {w.clause()}", w.pick(PLACES))
            )
    return found


# -- texts ---------------------------------------------------------------------------------------------------------


def essay(seed: int | str, sentences: int = 14) -> str:
    """About 400 tokens, a page."""
    return World(f"essay {seed}").paragraph(sentences)


def article(seed: int | str) -> tuple[str, str]:
    """A city's name and an article of about 150 tokens on it; the originals are ten times as long."""
    w = World(f"article {seed}")
    city = w.pick(CITIES)
    facts = (
        f"{city} is a city in {w.pick(('Peru', 'Norway', 'Italy', 'Senegal', 'Vietnam', 'Latvia'))} with about "
        f"{w.number(20, 900)},000 inhabitants. It lies at latitude {w.number(1, 60)}.{w.number(10, 99)} and is known "
        f"for {w.pick(PLACES)}."
    )
    return city, f"{facts} {w.paragraph(4)}"


def topic(seed: int | str) -> str:
    """A question that asks for advice (Vicuna bench)."""
    w = World(f"topic {seed}")
    subjects = (
        "sleep better",
        "learn to swim",
        "save water at home",
        "plan a small garden",
        "stay calm before an exam",
    )
    who = f"a {w.pick(QUALITIES)} {w.pick(TRADES)} from {w.pick(CITIES)}"
    return f"How can {who} {w.pick(subjects)}, even when {w.clause()}?"


def turns(seed: int | str, count: int, low: int, high: int) -> list[str]:
    """What a user says in `count` turns: each of `low` to `high` words, drawn evenly."""
    w = World(f"turns {seed}")
    said = []
    for _ in range(count):
        size, text = w.number(low, high), ""
        while len(text.split()) < size:
            text += w.sentence() + " "
        said.append(" ".join(text.split()[:size]) + "?")
    return said


# -- retrieval -----------------------------------------------------------------------------------------------------


def hops(seed: int | str, searches: int, passages: int) -> Hops:
    """Passages of about 60 tokens, as of an encyclopedia's abstracts."""
    w = World(f"hops {seed}")
    first, second = w.name(), w.name()
    question = f"Which trade did the teacher of {first}, who met {second} at {w.place()}, follow in later years?"
    asked = tuple(f"Who met {name} near {w.pick(PLACES)}?" for name in (first, second, *PEOPLE)[:searches])
    found = tuple(tuple(f"{w.name()} | {w.paragraph(2)}" for _ in range(passages)) for _ in asked)
    trade = w.pick(TRADES)
    reasoning = (
        f"produce the answer. We know that {second} was taught by a {trade}, so {first} must have met a {trade}."
    )
    return Hops(question, asked, found, reasoning, trade)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
