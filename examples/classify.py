"""A classifier with `select`: the labels are scored in one forward pass, nothing is generated."""

import palmette as pm

LABELS = [" positive", " negative", " neutral"]

HEADER = """Label the sentiment of each review as positive, negative or neutral.

Review: The soup was cold and the waiter was rude.
Label: negative

Review: An unforgettable evening, every dish was a delight!
Label: positive

Review: The restaurant is on the second floor.
Label: neutral

"""

REVIEWS = [
    "I loved every minute of this film.",
    "The phone broke after two days and nobody answers my mails.",
    "The parcel arrived on Tuesday.",
    "Best coffee in town, friendly people.",
    "What a waste of money.",
    "The room has two beds and a desk.",
]


@pm.function
def classify(s: pm.State, review: str) -> str:
    s += HEADER
    s += "Review: " + review + "\nLabel:" + pm.select("label", LABELS, choices_method=pm.exact_probability)
    label: str = s["label"]
    return label


def main() -> None:
    for review, label in zip(REVIEWS, classify.map(REVIEWS), strict=True):
        print(f"{label.strip():>9}: {review}")


if __name__ == "__main__":
    pm.set_default_backend(pm.Runtime(model_path="smollm2"))
    main()
