"""Skeleton of thought (Ning et al. 2023, arXiv 2307.15337): write the points first, then expand all of them at once.

The branches share everything up to the skeleton; the join puts their text behind it, in order.
"""

import palmette as pm

ORDINALS = ["First", "Second", "Third"]
POINTS = len(ORDINALS)


@pm.function
def skeleton_of_thought(s: pm.State, topic: str) -> None:
    s += pm.system("You are a helpful assistant that writes short, clear text.")
    s += pm.user(
        f"Give me {POINTS} pieces of advice on {topic}. First a list of short points, then one sentence on each."
    )
    with s.assistant():
        s += f"Here are {POINTS} short points on {topic}:\n"
        for i in range(POINTS):
            s += f"{ORDINALS[i]}, you should" + pm.gen(f"point{i}", max_tokens=16, stop=["\n", ".", ","]) + ".\n"
        s += "\n"
        branches = s.fork(POINTS)
        for i, branch in enumerate(branches):
            point = s[f"point{i}"]
            branch += f"Why you should{point}: because" + pm.gen("text", max_tokens=32, stop=["\n", "."]) + ".\n"
        branches.join("concate_and_append")
        s += "In short, you should" + pm.gen("summary", max_tokens=24, stop=["\n", "."]) + "."


def main() -> None:
    state = skeleton_of_thought.run(topic="sleeping better", temperature=0)
    print(state.messages()[-1]["content"].strip())


if __name__ == "__main__":
    pm.set_default_backend(pm.Runtime(model_path="smollm2"))
    main()
