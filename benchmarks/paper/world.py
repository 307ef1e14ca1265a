"""English sentences about a made-up place: raw material for every data set. Seeded, no two calls alike.

Knows words and sentence patterns. Does not know what a data set looks like.
"""

from __future__ import annotations

import random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _words(
    """
    Ada Ben Clara David Elena Farid Greta Hugo Ines Jonas Karin Leo Mina Noor Otto Pia Quinn Rosa Samir Tilda Umar
    Vera Walter Yara Zeno
    """
)
SURNAMES = _words(
    """
    Ahrens Brown Costa Dimov Eriksen Fischer Garcia Haddad Ito Jansen Keller Lopez Moreau Nowak Okafor Petrov
    Rossi Silva Tanaka Weber Yilmaz
    """
)
TRADES = _words(
    """
    baker carpenter nurse teacher sailor painter farmer librarian mechanic potter weaver gardener geologist cook
    tailor printer surveyor beekeeper
    """
)
CITIES = _words("Lisbon Oslo Quito Hanoi Dakar Turin Bergen Cusco Izmir Porto Riga Tunis")
PLACES = (
    "the old harbour",
    "the market square",
    "the northern valley",
    "the city library",
    "the railway station",
    "the botanical garden",
    "the stone bridge",
    "the river mouth",
    "the town hall",
    "the lighthouse",
)
THINGS = (
    "lamps",
    "baskets",
    "apples",
    "books",
    "tiles",
    "ropes",
    "clocks",
    "kettles",
    "maps",
    "chairs",
    "candles",
    "letters",
    "bottles",
    "boxes",
    "flowers",
    "coins",
    "shirts",
    "loaves of bread",
    "jars of honey",
)
QUALITIES = _words("patient careful curious quiet stubborn generous precise cheerful practical")
SEASONS = (
    "early spring",
    "late summer",
    "the dry season",
    "the first weeks of autumn",
    "a long winter",
)
CAUSES = (
    "because the roads were closed",
    "since the older method had become too expensive",
    "after a sudden storm",
    "when the price of wood began to rise",
    "as soon as the new law came into force",
    "although nobody had asked for it",
    "while the council was still discussing the plan",
)
ACTIONS = _words("repaired counted sold borrowed moved sorted painted delivered collected lost")
EFFECTS = (
    "which doubled the amount of work",
    "and half of the village came to watch",
    "so the shop opened later",
    "and the records of that year mention it twice",
    "which nobody had expected at the time",
    "so that the neighbours had to wait until noon",
    "and it changed the trade of the whole region",
)


class World:
    """A source of names, numbers and sentences; the same seed says the same things."""

    def __init__(self, seed: int | str) -> None:
        self.random = random.Random(str(seed))

    def pick(self, words: tuple[str, ...]) -> str:
        return self.random.choice(words)

    def name(self) -> str:
        return f"{self.pick(PEOPLE)} {self.pick(SURNAMES)}"

    def number(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def place(self) -> str:
        return f"{self.pick(PLACES)} of {self.pick(CITIES)}"

    def goods(self) -> str:
        return f"{self.number(2, 99)} {self.pick(THINGS)}"

    def clause(self) -> str:
        """Who did what: six to ten words."""
        who = self.random.choice([self.pick(PEOPLE), f"the {self.pick(TRADES)}", f"a {self.pick(QUALITIES)} visitor"])
        return f"{who} {self.pick(ACTIONS)} {self.goods()} near {self.pick(PLACES)}"

    def sentence(self) -> str:
        """Fifteen to twenty-five words."""
        shape = self.number(0, 3)
        if shape == 0:
            text = f"In {self.number(1700, 1999)}, {self.clause()} {self.pick(CAUSES)}, {self.pick(EFFECTS)}."
        elif shape == 1:
            text = f"During {self.pick(SEASONS)} {self.clause()}, {self.pick(EFFECTS)}."
        elif shape == 2:
            text = (
                f"{self.name()}, a {self.pick(QUALITIES)} {self.pick(TRADES)} from {self.pick(CITIES)}, "
                f"{self.pick(ACTIONS)} {self.goods()} at {self.pick(PLACES)} {self.pick(CAUSES)}."
            )
        else:
            text = f"{self.clause()} {self.pick(CAUSES)}, and a {self.pick(TRADES)} {self.pick(ACTIONS)} the rest."
        return text[0].upper() + text[1:]

    def paragraph(self, sentences: int) -> str:
        return " ".join(self.sentence() for _ in range(sentences))
