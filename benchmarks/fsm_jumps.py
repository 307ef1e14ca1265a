"""Forced tokens on real texts: `python -m benchmarks.fsm_jumps FOLDER` with the folder of the shared test data.

Every valid instance of the schemas is written under the constraint's own separators and tokenized as a whole. Along
that tokenization three rules are asked what is forced, and judged by what the tokenization goes on with:

    ours    `stable_prefix`: only tokens that no continuation can change
    paper   `paper_jump`: the whole text so far and the forced bytes, tokenized again (retokenize="paper")
    alone   the forced bytes, tokenized alone

`--peer` adds llguidance's fast-forward tokens on the texts that both accept. `--every 6` takes every sixth schema.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fsm_constraints import CHARACTER
from palmette.errors import UnsupportedConstraint
from palmette.fsm.compile import Constraint, compile
from palmette.fsm.llguidance_engine import LLGuidanceEngine
from palmette.fsm.retokenize import paper_jump
from palmette.fsm.vocabulary import Vocabulary
from palmette.runtime.models.gguf import GGUFFile
from palmette.runtime.models.gguf_tokenizer import gguf_tokenizer
from palmette.runtime.models.load import find_model
from palmette.specs import JsonSchema, Regex, SchemaOptions, Spec

TAIL = 8  # emitted tokens that are looked at again
LONGEST = 4000  # bytes of a text

COMPACT, SPACED = (",", ":"), (", ", ": ")
# name -> options of the schema, separators of the texts
STYLES = {
    "compact": (SchemaOptions(compact=True), COMPACT),
    "spaced": (SchemaOptions(), SPACED),
    "free": (SchemaOptions(compact=True, whitespace=8), SPACED),
}
# Texts of the paper's character regex; the values in its order.
CHARACTERS = [
    ("Harry Potter", "Gryffindor", "Half-blood", "student", "Holly", "Phoenix feather", "11.0", "Alive", "Stag",
     "Dementor"),
    ("Hermione Granger", "Gryffindor", "Muggle-born", "student", "Vine", "Dragon heart", "10.75", "Alive", "Otter",
     "Failure"),
    ("Ron Weasley", "Gryffindor", "Pure-blood", "auror", "Willow", "Unicorn hair", "14.0", "Alive", "Terrier",
     "Spider"),
    ("Albus Dumbledore", "Gryffindor", "Half-blood", "teacher", "Elder", "Thestral hair", "15.0", "Deceased",
     "Phoenix", "Ariana"),
    ("Severus Snape", "Slytherin", "Half-blood", "teacher", "Birch", "Unknown", "13.5", "Deceased", "Doe",
     "Lord Voldemort"),
    ("Draco Malfoy", "Slytherin", "Pure-blood", "death eater", "Hawthorn", "Unicorn hair", "10.0", "Alive", "None",
     "Voldemort"),
    ("Luna Lovegood", "Ravenclaw", "Pure-blood", "student", "Unknown", "Unknown", "12.", "Alive", "Hare", "Unknown"),
    ("Cedric Diggory", "Hufflepuff", "Pure-blood", "student", "Ash", "Unicorn hair", "12.25", "Deceased", "Unknown",
     "Unknown"),
    ("Sirius Black", "Gryffindor", "Pure-blood", "order of the phoenix", "Unknown", "Unknown", "9.5", "Deceased",
     "Dog", "Azkaban"),
    ("Kingsley", "Gryffindor", "Pure-blood", "ministry of magic", "Oak", "Unknown", "13.", "Alive", "Lynx", "Banshee"),
]  # fmt: skip


@dataclass
class Rule:
    """How one rule did. Skipped tokens count once per text."""

    jumps: int = 0
    skipped: int = 0
    wrong: int = 0  # jumps whose tokens are not those of the whole text


@dataclass
class Count:
    texts: int = 0
    tokens: int = 0
    spans: int = 0  # maximal runs of forced bytes that begin at a token
    seconds: float = 0.0  # in `stable_prefix`
    ours: Rule = field(default_factory=Rule)
    paper: Rule = field(default_factory=Rule)
    alone: Rule = field(default_factory=Rule)
    rewritten: int = 0  # jumps of the paper's rule that changed a token emitted before
    peer_texts: int = 0
    peer_tokens: int = 0
    peer: Rule = field(default_factory=Rule)
    peer_ours: int = 0  # what we skip on the texts that the peer accepts


class Encoder:
    """The embedded model's tokenizer over bytes."""

    def __init__(self) -> None:
        self.tokenizer = gguf_tokenizer(GGUFFile(find_model("smollm2")[0]))
        tokens = [self.tokenizer.token_bytes(i) for i in range(self.tokenizer.vocab_size)]
        self.vocabulary = Vocabulary(tokens, eos_ids=self.tokenizer.eos_ids)

    def __call__(self, data: bytes) -> Sequence[int] | None:
        try:
            return self.tokenizer.encode(data.decode())
        except UnicodeDecodeError:
            return None


def schemas(folder: Path, every: int) -> Iterator[tuple[Any, list[Any]]]:
    """Schemas with their valid instances."""
    paths = [*sorted((folder / "jsonschemabench").glob("*.jsonl")), folder / "schemastore" / "schemas.jsonl"]
    lines = itertools.chain.from_iterable(path.read_text(encoding="utf-8").splitlines() for path in paths)
    for line in itertools.islice(lines, every - 1, None, every):
        row = json.loads(line)
        yield row["schema"], [t["data"] for t in row["tests"] if t["valid"]]


def measure_text(constraint: Constraint, encode: Encoder, text: bytes, count: Count, peer: Any = None) -> None:
    """Walk the tokenization of `text`; nothing is counted if the constraint does not allow it."""
    ids = list(encode(text) or [])
    matcher = constraint.matcher()
    if not ids or not all(matcher.try_advance(t) for t in ids) or not matcher.is_accepting:
        return
    count.texts += 1
    count.tokens += len(ids)
    before = count.ours.skipped
    _walk_ours(constraint, encode, ids, count)
    _walk_spans(constraint, encode, ids, count)
    if peer is not None:
        _walk_peer(peer, ids, count, count.ours.skipped - before)


def _walk_ours(constraint: Constraint, encode: Encoder, ids: list[int], count: Count) -> None:
    matcher, at = constraint.matcher(), 0
    while at < len(ids):
        start = time.perf_counter()
        forced = matcher.forced_tokens(encode, ids[max(0, at - TAIL) : at])
        count.seconds += time.perf_counter() - start
        count.ours.jumps += bool(forced)
        if forced != ids[at : at + len(forced)]:
            count.ours.wrong += 1
            tokens = constraint.vocabulary.tokens
            print("non-canonical:", [tokens[t] for t in forced], [tokens[t] for t in ids[at : at + len(forced)]])
            forced = []
        count.ours.skipped += len(forced)
        for token in forced or ids[at : at + 1]:
            matcher.advance(token)
            at += 1


def _walk_spans(constraint: Constraint, encode: Encoder, ids: list[int], count: Count) -> None:
    """Every span once, from the token it begins at; the walk goes on at the first token boundary behind it."""
    tokens = constraint.vocabulary.tokens
    matcher, at = constraint.matcher(), 0
    while at < len(ids):
        span = matcher.forced_bytes()
        steps = 1
        if span:
            count.spans += 1
            kept, new = paper_jump(constraint.automaton, matcher._state(), encode, ids[:at])
            count.rewritten += kept < at
            _judge(count.paper, [*ids[:kept], *new], ids, at)
            alone = encode(span)
            if alone is not None:
                _judge(count.alone, [*ids[:at], *alone], ids, at)
            behind = len(span) - len(tokens[ids[at]])
            while behind > 0:
                behind -= len(tokens[ids[at + steps]])
                steps += 1
        for token in ids[at : at + steps]:
            matcher.advance(token)
        at += steps


def _judge(rule: Rule, written: Sequence[int], ids: Sequence[int], at: int) -> None:
    rule.jumps += len(written) > at
    rule.skipped += max(0, len(written) - at)
    rule.wrong += list(written) != list(ids[: len(written)])


def _walk_peer(peer: Any, ids: list[int], count: Count, ours: int) -> None:
    at = skipped = jumps = wrong = 0
    while at < len(ids):
        forced = peer.compute_ff_tokens()
        if forced and forced != ids[at : at + len(forced)]:
            wrong += 1
            forced = []
        jumps += bool(forced)
        skipped += len(forced)
        if not peer.consume_tokens(forced or ids[at : at + 1]):
            return  # another reading of the schema
        at += len(forced) or 1
    count.peer_texts += 1
    count.peer_tokens += len(ids)
    count.peer_ours += ours
    count.peer.jumps += jumps
    count.peer.skipped += skipped
    count.peer.wrong += wrong


class Peer:
    """llguidance over the same tokenizer."""

    def __init__(self, encode: Encoder) -> None:
        self.engine = LLGuidanceEngine(encode.vocabulary, encode)

    def matcher(self, spec: Spec) -> Any:
        """An LLMatcher; None where it refuses `spec`."""
        try:
            return self.engine.compile(spec).start
        except UnsupportedConstraint:
            return None


def measure_schemas(folder: Path, every: int, style: str, encode: Encoder, peer: Peer | None) -> Count:
    options, separators = STYLES[style]
    count = Count()
    for schema, values in schemas(folder, every):
        texts = [json.dumps(v, ensure_ascii=False, separators=separators) for v in values]
        data = [t.encode("utf-8", "surrogatepass") for t in texts]
        try:
            constraint = compile(JsonSchema.of(schema, options), encode.vocabulary)
            for text in data:
                if len(text) <= LONGEST:
                    measure_text(constraint, encode, text, count, peer.matcher(constraint.spec) if peer else None)
        except UnsupportedConstraint:
            continue
    return count


def measure_characters(encode: Encoder, peer: Peer | None) -> Count:
    count = Count()
    constraint = compile(Regex(CHARACTER), encode.vocabulary)
    for name, house, blood, occupation, wood, core, length, alive, patronus, bogart in CHARACTERS:
        measure_text(
            constraint,
            encode,
            f'{{\n    "name": "{name}",\n    "house": "{house}",\n    "blood status": "{blood}",\n'
            f'    "occupation": "{occupation}",\n    "wand": {{\n        "wood": "{wood}",\n        "core": "{core}",\n'
            f'        "length": {length}\n    }},\n    "alive": "{alive}",\n    "patronus": "{patronus}",\n'
            f'    "bogart": "{bogart}"\n}}'.encode(),
            count,
            peer.matcher(constraint.spec) if peer else None,
        )
    assert count.texts == len(CHARACTERS), "each of them is a text of the regex"
    return count


def show(name: str, c: Count) -> None:
    def share(part: int, whole: int) -> str:
        return f"{100 * part / max(whole, 1):.1f} %"

    places = max(c.tokens - c.ours.skipped, 1)
    print(f"{name}: {c.texts} texts, {c.tokens} tokens, {c.spans} forced spans")
    print(
        f"  ours   skips {share(c.ours.skipped, c.tokens)} in {c.ours.jumps} jumps, {c.ours.wrong} non-canonical, "
        f"{1e6 * c.seconds / places:.0f} us a place"
    )
    print(
        f"  paper  writes {share(c.paper.skipped, c.tokens)}; non-canonical in {share(c.paper.wrong, c.spans)} of the "
        f"spans, {share(c.rewritten, c.spans)} rewrite emitted tokens"
    )
    print(f"  alone  writes {share(c.alone.skipped, c.tokens)}; non-canonical in {share(c.alone.wrong, c.spans)}")
    if c.peer_texts:
        print(
            f"  llguidance skips {share(c.peer.skipped, c.peer_tokens)} on {c.peer_texts} texts, {c.peer.wrong} "
            f"non-canonical (ours there {share(c.peer_ours, c.peer_tokens)})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every Nth schema")
    parser.add_argument("--style", choices=[*STYLES, "character"], action="append", help="default: all")
    parser.add_argument("--peer", action="store_true", help="llguidance beside it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts there too")
    options = parser.parse_args()
    encode = Encoder()
    peer = Peer(encode) if options.peer else None
    counts: dict[str, Count] = {}
    for style in options.style or [*STYLES, "character"]:
        if style == "character":
            counts[style] = measure_characters(encode, peer)
        else:
            counts[style] = measure_schemas(options.folder, options.every, style, encode, peer)
        show(style, counts[style])
    if options.json:
        options.json.write_text(json.dumps({k: asdict(v) for k, v in counts.items()}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
