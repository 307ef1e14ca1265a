"""Extraction into a pydantic model: the text is held to the model's schema, and the value is an instance of it."""

from datetime import date
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, Field

import palmette as pm

Name = Annotated[str, Field(max_length=40)]
Amount = Annotated[Decimal, Field(ge=0, max_digits=8, decimal_places=2)]


class Line(BaseModel):
    what: Name
    amount: Amount


class Invoice(BaseModel):
    customer: Name
    due: date
    lines: Annotated[list[Line], Field(min_length=1, max_length=3)]


HEADER = """Extract each invoice as JSON.

Text: Ms Lopez ordered a lamp for 40 euros and a rug for 120 euros. Payment is due on 2024-03-01.
JSON: {"customer": "Ms Lopez", "due": "2024-03-01", "lines": [{"what": "lamp", "amount": 40}, {"what": "rug", "amount": 120}]}

Text: Mr Green bought three shelves for 99.90 euros, due 2023-11-20.
JSON: {"customer": "Mr Green", "due": "2023-11-20", "lines": [{"what": "three shelves", "amount": 99.90}]}

"""  # noqa: E501 - as the model shall write it

TEXTS = [
    "Acme owes us 85.50 euros for two chairs. It has to pay by 2024-05-15.",
    "Mr Brown bought a desk for 310 euros and a clock for 25 euros, to be paid until 2024-06-30.",
]


@pm.function
def extract(s: pm.State, text: str) -> Invoice:
    s += HEADER + "Text: " + text + "\nJSON: "
    return s.gen(Invoice, max_tokens=160)


def main() -> None:
    # A model as small as this one may not come to an end: then the value is what the token budget closed.
    for text, invoice in zip(TEXTS, extract.map(TEXTS, temperature=0, on_budget="close"), strict=True):
        total = sum(line.amount for line in invoice.lines)
        print(
            f"{text}\n  -> {invoice.customer!r}, due {invoice.due:%d %B %Y}, {len(invoice.lines)} lines, {total} euros"
        )


if __name__ == "__main__":
    pm.set_default_backend(pm.Runtime(model_path="smollm2"))
    main()
