"""Dates: a regex for the form, or a type for days that exist and can be reckoned with."""

from datetime import date

import palmette as pm

HEADER = """Write each date in digits.

Text: We met on the third of April 2019.
Date: 2019-04-03

Text: The lease ends on December 31st, 2025.
Date: 2025-12-31

"""

TEXTS = [
    "She was born on the 4th of July 1990.",
    "The concert takes place on 29 February 2024.",
    "They signed it on October 12, 2021.",
]


@pm.function
def as_text(s: pm.State, text: str) -> str:
    """The form alone: a text, and 2023-02-30 would be one too."""
    s += HEADER + "Text: " + text + "\nDate: " + pm.gen("date", regex=r"\d{4}-\d{2}-\d{2}")
    written: str = s["date"]
    return written


@pm.function
def as_date(s: pm.State, text: str) -> date:
    """A day of the calendar."""
    s += HEADER + "Text: " + text + "\nDate: "
    return s.gen(date)


def main() -> None:
    written, days = as_text.map(TEXTS, temperature=0), as_date.map(TEXTS, temperature=0)
    for text, form, day in zip(TEXTS, written, days, strict=True):
        print(f"{text}  ->  {form}, a {day:%A} ({day.toordinal()} days since the year 1)")


if __name__ == "__main__":
    pm.set_default_backend(pm.Runtime(model_path="smollm2"))
    main()
