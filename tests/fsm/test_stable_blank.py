"""A forced blank at the end of forced text, against real pre-tokenizers: it is given only where it stays a token."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from tokenizers import Regex as SplitPattern
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from palmette.fsm.compile import compile
from palmette.fsm.vocabulary import Vocabulary
from palmette.runtime.fast_tokenizer import _LETTERS
from palmette.runtime.models.gguf_tokenizer import _SPLITS
from palmette.specs import Regex

HEADS = ['{"a": ', '"n":  ', "x ", "x: ", "},\n ", "12 ", "é ", "\u3000 ", "\t ", '["k", ', "= ", "\n\n ", ". ", "' "]
VALUES = [r"[0-9]{1,4}", r"-?[0-9]+\.[0-9]", r"[A-Z][a-z]{1,4}", r"(true|null)", r"\"[a-c0-9]{0,3}\"", r"[!-~]{1,3}",
          r" ?[0-9]+", r"[0-9\n]{1,3}", r"['s]{1,2}[a-z]"]  # fmt: skip


class TrainedBPE:
    """A byte-level BPE with the pre-tokenizer `name`, trained on random texts of the kind that is asked about."""

    def __init__(self, name: str, rng: random.Random) -> None:
        splits = [pre_tokenizers.Split(SplitPattern(pattern), "isolated") for pattern in _SPLITS[name]]
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self.tokenizer = Tokenizer(models.BPE())
        self.tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, letters])
        self.tokenizer.decoder = decoders.ByteLevel()
        corpus = [rng.choice(HEADS) + random_tail(rng) + rng.choice(HEADS) + random_tail(rng) for _ in range(800)]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        self.tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet))
        size = self.tokenizer.get_vocab_size()
        spelled = [bytes(_LETTERS[c] for c in self.tokenizer.id_to_token(i) or "") for i in range(size)]
        self.vocabulary = Vocabulary([*spelled, b""], eos_ids=[size])

    def encode(self, data: bytes) -> Sequence[int] | None:
        try:
            ids: list[int] = self.tokenizer.encode(data.decode()).ids
        except UnicodeDecodeError:
            return None
        return ids


def random_tail(rng: random.Random) -> str:
    return rng.choice(["", "-"]) + "".join(rng.choices("0123456789.trueabcA\"' \n", k=rng.randint(1, 6)))


@pytest.mark.parametrize("name", _SPLITS)
def test_a_forced_blank_begins_what_follows_in_every_text(name: str) -> None:
    rng = random.Random(41)
    bpe = TrainedBPE(name, rng)
    tokens = bpe.vocabulary.tokens
    checked = blanks = 0
    for head in HEADS:
        for value in VALUES:
            constraint = compile(Regex(_quoted(head) + f"({value})"), bpe.vocabulary)
            for _ in range(6):
                matcher, text = constraint.matcher(), b""
                while not matcher.is_terminated and len(text) < 60:
                    token = rng.choice(matcher.allowed().tolist())
                    matcher.advance(token)
                    text += tokens[token]
                canonical = bpe.encode(text)
                assert canonical is not None
                twin = constraint.matcher()
                for at in range(len(canonical)):
                    forced = twin.forced_tokens(bpe.encode, canonical[:at])
                    assert list(canonical[at : at + len(forced)]) == forced, (head, value, text)
                    checked += bool(forced)
                    blanks += bool(forced) and tokens[forced[-1]] == b" "
                    if not twin.try_advance(canonical[at]):
                        break  # the walk stopped before the text could end
    assert checked > 400
    assert blanks > 0 or name in ("gpt-2", "default"), "those join a blank with the digits behind it"


def _quoted(text: str) -> str:
    return "".join(c if c.isalnum() or c.isspace() else "\\" + c if c.isascii() else c for c in text)
