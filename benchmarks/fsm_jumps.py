"""Forced tokens on real texts: `python -m benchmarks.fsm_jumps FOLDER` with the folder of the shared test data.

Every valid instance of the schemas is written under the constraint's own separators and tokenized as a whole. Along
that tokenization the matcher is asked for forced tokens; each answer must be what the tokenization goes on with.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fsm_vocab import smollm2_merges, smollm2_vocabulary
from palmette.errors import UnsupportedConstraint
from palmette.fsm.compile import compile
from palmette.specs import JsonSchema, SchemaOptions

TAIL = 8  # emitted tokens that are looked at again
EVERY = 6  # schemas


def instances(folder: Path) -> Iterator[tuple[Any, Any]]:
    n = 0
    for path in [*sorted((folder / "jsonschemabench").glob("*.jsonl")), folder / "schemastore" / "schemas.jsonl"]:
        for line in path.read_text(encoding="utf-8").splitlines():
            n += 1
            if n % EVERY == 0:
                row = json.loads(line)
                yield row["schema"], [t["data"] for t in row["tests"] if t["valid"]]


def encoder() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers  # a heavy import, used here only

    del Regex
    data = smollm2_merges()
    vocab = {token: i for i, token in enumerate(data["tokens"])}
    merges = [tuple(m.split(" ")) for m in data["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    digits, letters = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def main() -> None:
    vocabulary, tokenizer = smollm2_vocabulary(), encoder()

    def encode(data: bytes) -> Sequence[int] | None:
        try:
            ids: list[int] = tokenizer.encode(data.decode()).ids
        except UnicodeDecodeError:
            return None
        return ids

    for compact in (True, False):
        separators = (",", ":") if compact else (", ", ": ")
        tokens = skipped = jumps = wrong = texts = 0
        seconds = 0.0
        for schema, values in instances(Path(sys.argv[1])):
            try:
                constraint = compile(JsonSchema.of(schema, SchemaOptions(compact=compact)), vocabulary)
            except UnsupportedConstraint:
                continue
            for value in values:
                text = json.dumps(value, ensure_ascii=False, separators=separators).encode()
                ids = list(encode(text) or []) if len(text) < 4000 else []
                matcher, at = constraint.matcher(), 0
                if not ids or not all(matcher.try_advance(t) for t in ids) or not matcher.is_accepting:
                    continue  # its keys stand in another order
                matcher.rollback(len(ids))
                texts += 1
                while at < len(ids):
                    start = time.perf_counter()
                    forced = matcher.forced_tokens(encode, ids[max(0, at - TAIL) : at])
                    seconds += time.perf_counter() - start
                    if forced != ids[at : at + len(forced)]:
                        wrong += 1
                        expected = [vocabulary.tokens[t] for t in ids[at : at + len(forced)]]
                        print("non-canonical:", [vocabulary.tokens[t] for t in forced], expected)
                        forced = []
                    jumps += bool(forced)
                    skipped += len(forced)
                    for token in forced or ids[at : at + 1]:
                        matcher.advance(token)
                        at += 1
                tokens += len(ids)
        name = "compact" if compact else "spaced"
        print(
            f"{name}: {texts} texts, {tokens} tokens, {jumps} jumps skip {100 * skipped / max(tokens, 1):.1f} %, ",
            end="",
        )
        print(f"{wrong} non-canonical, {1e6 * seconds / max(tokens - skipped, 1):.0f} us a place")


if __name__ == "__main__":
    main()
