"""Classification with `Literal`: the hole can hold nothing but a label, and reads as one."""

from typing import Literal

import palmette as pm

Label = Literal["billing", "delivery", "technical"]

HEADER = """Sort each message into billing, delivery or technical.

Message: I was charged twice this month.
Label: billing

Message: My parcel has not arrived yet.
Label: delivery

Message: The app crashes when I open it.
Label: technical

Message: The amount on my bill is wrong.
Label: billing

Message: The box came a week late.
Label: delivery

"""

MESSAGES = [
    "When will my order get here?",
    "The bill is too high.",
    "I cannot log in since the update.",
    "The courier left the box in the rain.",
]


@pm.function
def classify(s: pm.State, message: str) -> Label:
    s += HEADER + "Message: " + message + "\nLabel: " + pm.gen("label", type=Label)
    label: Label = s["label"]
    return label


def main() -> None:
    for message, label in zip(MESSAGES, classify.map(MESSAGES, temperature=0), strict=True):
        print(f"{label:>9}: {message}")


if __name__ == "__main__":
    pm.set_default_backend(pm.Runtime(model_path="smollm2"))
    main()
