"""ReAct, which reasons and looks things up in turn, and the agents of a simulated town with their templates."""

from __future__ import annotations

from collections.abc import Sequence

import palmette as pm
from benchmarks.paper.data import Lookup, Moment

_RULES = """Answer the question in steps. Each step is a thought about what is known and what is missing, then an
action, Search[entity] to read the first sentences of an article or Finish[answer] to end; an observation follows each
search.

"""


def react_header(examples: Sequence[Lookup]) -> str:
    """The rules and whole runs as examples."""
    text = _RULES
    for example in examples:
        text += f"Question: {example.question}\n"
        found = zip(example.thoughts, example.actions, example.observations, strict=True)
        for i, (thought, action, observation) in enumerate(found, 1):
            text += f"Thought {i}: {thought}\nAction {i}: {action}\nObservation {i}: {observation}\n"
        text += f"Thought: I know enough.\nAction: Finish[{example.answer}]\n\n"
    return text


@pm.function
def react(s: pm.State, header: str, question: str, observations: Sequence[str], length: int) -> None:
    """The observations are what a scripted search brings, whatever was searched for."""
    s += header + f"Question: {question}\n"
    for i, observation in enumerate(observations, 1):
        s += f"Thought {i}:" + pm.gen(f"step{i}", max_tokens=length)
        s += f"\nObservation {i}: {observation}\n"
    s += "Action: Finish[" + pm.gen("answer", max_tokens=8)


# -- the town: five kinds of call, most of them a template with examples in front and the moment behind it ---------

_TRIPLES = """Turn each sentence into subject, verb and object.

Sentence: Ada Keller is making coffee in her small kitchen before the shop opens.
Triple: (Ada Keller, make, coffee)

Sentence: Hugo Costa is looking for his boat, which the storm tore loose from the quay.
Triple: (Hugo Costa, look for, boat)

Sentence: The teacher is reading a book about the history of the harbour to the class.
Triple: (teacher, read, book)

Sentence: Ines Weber hears that the council wants to close the old bridge next month.
Triple: (Ines Weber, hear about, bridge)

Sentence: The baker is out of flour and waits for the mill to send some more of it.
Triple: (baker, wait for, flour)

Sentence: Samir Nowak has just told his brother that the lamps of the lighthouse will be replaced in May.
Triple: (Samir Nowak, tell about, lamps)

Sentence: Two visitors are asking the librarian for a map of the northern valley and its paths.
Triple: (visitors, ask for, map)

"""
_SIGNS = """Describe each action with two or three simple signs, such as are used in short messages.

Action: Ada Keller is making coffee in her small kitchen before the shop opens.
Signs: cup, steam

Action: Hugo Costa is looking for his boat, which the storm tore loose from the quay.
Signs: boat, wave, eye

Action: The teacher is reading a book about the history of the harbour to the class.
Signs: book, anchor

Action: Ines Weber hears that the council wants to close the old bridge next month.
Signs: ear, bridge, cross

Action: Samir Nowak has just told his brother that the lamps of the lighthouse will be replaced in May.
Signs: mouth, lamp

Action: Two visitors are asking the librarian for a map of the northern valley and its paths.
Signs: question mark, map

Action: The baker is out of flour and waits for the mill to send some more of it.
Signs: empty bag, clock

"""
_SECTORS = """Choose the area where a person goes for what he or she wants to do. Stay in the present area if that will
do.

Person: Ada Keller lives in a flat with kitchen, bedroom and bathroom. She is at the bakery now.
Areas: flat, bakery, harbour, town hall, library, park.
Wants to: have a rest after a long day at the oven.
Area: flat

Person: Hugo Costa lives on a boat with a cabin and a deck. He is in the park now.
Areas: flat, bakery, harbour, town hall, library, park.
Wants to: complain about the noise of the building site.
Area: town hall

Person: Ines Weber lives in a house with a garden. She is at the library now.
Areas: flat, bakery, harbour, town hall, library, park.
Wants to: read the newspapers of last week.
Area: library

Person: Samir Nowak lives in a room above the bakery with a bed and a desk. He is at the town hall now.
Areas: flat, bakery, harbour, town hall, library, park.
Wants to: buy bread for the evening and talk to the people there.
Area: bakery

"""
_OBJECTS = """Name the one object that a person uses for an action, out of those that are in the room.

Action: make coffee for two guests
Objects: bed, stove, table, wardrobe
Object: stove

Action: write a letter to the council about the bridge
Objects: shelf, desk, window, plant
Object: desk

Action: rest for half an hour before the evening shift
Objects: sink, sofa, bookcase, lamp
Object: sofa

Action: look up when the lighthouse was built
Objects: counter, bookcase, door, carpet
Object: bookcase

Action: keep the soup warm until the guests arrive from the station
Objects: stove, window, rug, mirror
Object: stove

Action: hang up a wet coat after the way home through the rain
Objects: hook, bed, kettle, drawer
Object: hook

"""
_SCALE = """On a scale from 1 to 10, where 1 is an everyday event such as brushing teeth or making a bed, and 10 is an
event that changes a whole life, such as a wedding or the loss of a house, say how much the event below will matter to
this person. Think of what the person does for a living and of who is close to the person. Answer with a number only.

"""


@pm.function
def triple(s: pm.State, moment: Moment) -> None:
    s += _TRIPLES
    s += f"Sentence: {moment.event}.\nTriple: (" + pm.gen("triple", max_tokens=16)


@pm.function
def signs(s: pm.State, moment: Moment) -> None:
    s += _SIGNS
    s += f"Action: {moment.event}.\nSigns:" + pm.gen("signs", max_tokens=6)


@pm.function
def sector(s: pm.State, moment: Moment) -> None:
    s += _SECTORS
    s += f"Person: {moment.about}\nAreas: flat, bakery, harbour, town hall, library, park.\n"
    s += f"Wants to: go to {moment.place}.\nArea:" + pm.gen("area", max_tokens=6)


@pm.function
def thing(s: pm.State, moment: Moment) -> None:
    s += _OBJECTS
    s += f"Action: go to {moment.place}, where {moment.event}\nObjects: shelf, stove, desk, sofa\nObject:"
    s += pm.gen("object", max_tokens=6)


@pm.function
def poignancy(s: pm.State, moment: Moment) -> None:
    s += f"Here is a short description of {moment.name}.\n{moment.about}\n\n" + _SCALE
    s += f"Event: {moment.event}.\nNumber:" + pm.gen("number", max_tokens=3)


TOWN = (triple, signs, sector, thing, poignancy)
