"""JSON decoding: a character under the paper's regular expression, a city's article under a schema."""

from __future__ import annotations

from typing import Any

import palmette as pm
from benchmarks.fsm_constraints import CHARACTER, CHARACTER_TEXT

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 16},
        "country": {"type": "string", "maxLength": 16},
        "latitude": {"type": "number", "minimum": -90, "maximum": 90, "multipleOf": 0.01},
        "population": {"type": "integer", "minimum": 0, "maximum": 99999999},
        "landmarks": {"type": "array", "items": {"type": "string", "maxLength": 16}, "minItems": 3, "maxItems": 3},
    },
    "required": ["name", "country", "latitude", "population", "landmarks"],
    "additionalProperties": False,
}
_CITY_RULES = """Read the article about a city and write down its name, its country, its latitude in degrees, its
population and its three best known landmarks as JSON. Take what the article says; where it says nothing, guess.

"""
_CHARACTER_RULES = f"""Fill in the card of a character of a story about a school of magic. One card as an example:
{CHARACTER_TEXT}

"""


@pm.function
def character(s: pm.State, name: str) -> None:
    s += _CHARACTER_RULES
    s += f"{name} is a character of the story. The card of {name}:\n"
    s += pm.gen("card", max_tokens=320, regex=CHARACTER, ignore_eos=False)


@pm.function
def city(s: pm.State, article: str) -> None:
    s += _CITY_RULES
    s += f"{article}\n\nJSON: " + pm.gen("city", max_tokens=160, json_schema=CITY, ignore_eos=False)
