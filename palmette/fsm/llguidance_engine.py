"""llguidance behind the interface of `compile` and `Matcher`: an optional engine for grammars beyond ours.

It is chosen by configuration and never stepped back to. What it takes more: left recursion, `%regex`, `%json`, nested
Lark grammars, `%ignore`. What it promises less:

- A token budget is not enforced: llguidance does not know how far the end is. Masks under a budget are the plain ones,
  save that the very last token is end-of-sequence where the text may end; a hole can end with `length` and a text that
  does not satisfy its constraint. `cost_to_accept` is a lower bound here.
- Forced tokens are llguidance's own fast-forward tokens, cut to what the tokenizer confirms. They are almost always,
  not provably, those of the whole text. Where bytes are forced its masks hold the first of them alone, planned or not.
- Regexes are those of Rust's `regex` crate (\\d \\w \\s made ASCII, as ours are); schemas are read as it reads them.

Knows llguidance's Python interface and nothing of how it works.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from palmette.errors import RequestError, UnsupportedConstraint, UnsupportedFeature
from palmette.fsm.cursor import Encode
from palmette.fsm.slices import Mask
from palmette.fsm.vocabulary import Vocabulary
from palmette.specs import Choices, Grammar, JsonSchema, Regex, SchemaOptions, Spec

_JSON_SPACE = r"[\x20\x0A\x0D\x09]"


class LLGuidanceEngine:
    """Compiles specifications over one vocabulary. Build it once per tokenizer: llguidance makes a trie of its own."""

    def __init__(self, vocabulary: Vocabulary, encode: Encode) -> None:
        """
        Args:
            encode: the tokenizer on text without special tokens.

        Raises:
            UnsupportedFeature: llguidance is not installed, or the vocabulary has no end-of-sequence token.
        """
        self._llguidance = _llguidance()
        if not vocabulary.eos_ids:
            raise UnsupportedFeature("constraint_engine='llguidance'", "it needs a vocabulary with end-of-sequence")
        self.vocabulary = vocabulary
        self._tokenizer = self._llguidance.LLTokenizer(
            self._llguidance.TokenizerWrapper(_Tokenizer(vocabulary, encode)), len(vocabulary)
        )

    def compile(self, spec: Spec) -> LLGuidanceConstraint:
        """Raises UnsupportedConstraint with llguidance's own words where it refuses `spec`."""
        version: str = self._llguidance.__version__
        grammar = self._grammar(spec)
        start = self._llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if start.is_error():
            raise UnsupportedConstraint("", _keyword(spec), f"llguidance {version} refuses it: {_first_line(start)}")
        digest = hashlib.sha256(repr((version, spec, self.vocabulary.digest)).encode("utf-8", "surrogatepass"))
        unenforced = tuple(f" {warning}" for warning in start.get_grammar_warnings())
        return LLGuidanceConstraint(spec, f"llguidance-{digest.hexdigest()}", unenforced, self, start)

    def _grammar(self, spec: Spec) -> str:
        """The specification in llguidance's own form."""
        matcher = self._llguidance.LLMatcher
        if isinstance(spec, Regex):
            lark = "start: /" + self._llguidance.regex_to_lark(spec.pattern, "dws") + "/"
            return str(matcher.grammar_from_lark(lark))
        if isinstance(spec, Choices):
            if not spec.texts:
                raise UnsupportedConstraint("", "choices", "there is nothing to choose from")
            return str(matcher.grammar_from_lark("start: " + " | ".join(json.dumps(t) for t in spec.texts)))
        if isinstance(spec, Grammar):
            return str(matcher.grammar_from_lark(self._lark(spec.text)))
        if isinstance(spec, JsonSchema):
            return str(matcher.grammar_from_json_schema(spec.text, overrides=_json_options(spec.options)))
        raise UnsupportedConstraint("", type(spec).__name__, "llguidance is not given this kind of constraint")

    def _lark(self, text: str) -> str:
        """A grammar as Lark: GBNF, told by its ::=, is translated."""
        if "::=" not in text:
            return text
        gbnf: Any = importlib.import_module("llguidance.gbnf_to_lark")
        try:
            return str(gbnf.gbnf_to_lark(text))
        except gbnf.GbnfToLarkError as error:
            raise UnsupportedConstraint("", "grammar", f"llguidance cannot read it as GBNF: {error}") from None


@dataclass(frozen=True, slots=True, eq=False)
class LLGuidanceConstraint:
    """A compiled constraint; the counterpart of `compile.Constraint`."""

    spec: Spec
    key: str
    unenforced: tuple[str, ...]  # llguidance's warnings about what `strict=False` left out
    engine: LLGuidanceEngine = field(repr=False)
    start: Any = field(repr=False)  # an LLMatcher that is only ever copied

    @property
    def nbytes(self) -> int:
        """Unknown: llguidance does not tell."""
        return 0

    def matcher(self) -> LLGuidanceMatcher:
        """A new cursor at the beginning."""
        return LLGuidanceMatcher(self, self.start.deep_copy())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LLGuidanceConstraint) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


class LLGuidanceMatcher:
    """The counterpart of `matcher.Matcher`, whose docstrings hold here but for what the module says."""

    def __init__(self, constraint: LLGuidanceConstraint, matcher: Any) -> None:
        self.constraint = constraint
        self._matcher = matcher  # never reads end-of-sequence: its rollback does not count it
        self._readings: list[tuple[int, ...]] = []  # tokens of each reading
        self._is_bytes: list[bool] = []  # was the reading one of bytes?
        self._plans: list[tuple[int, ...]] = [()]
        self._ended_at: int | None = None  # number of readings when end-of-sequence came
        self._mask: Mask | None = None  # of this very place

    @property
    def is_accepting(self) -> bool:
        return bool(self._matcher.is_accepting())

    @property
    def is_terminated(self) -> bool:
        return self._ended_at is not None

    @property
    def tokens(self) -> tuple[int, ...]:
        pairs = zip(self._readings, self._is_bytes, strict=True)
        return tuple(t for reading, is_bytes in pairs if not is_bytes for t in reading)

    @property
    def forced_plan(self) -> tuple[int, ...]:
        return self._plans[-1]

    def mask(self) -> Mask:
        """Tokens allowed next, as packed bits. Read-only.

        Raises:
            RequestError: llguidance gave up (its own limits on work).
        """
        vocabulary = self.constraint.engine.vocabulary
        if self._plans[-1]:
            return _bits(self._plans[-1][:1], vocabulary.mask_words)
        if self._ended_at is not None:
            return np.zeros(vocabulary.mask_words, np.uint32)
        if self._mask is None:
            mask = np.zeros(vocabulary.mask_words, np.uint32)
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            self._check()
            ends = _bits(vocabulary.eos_ids, vocabulary.mask_words)
            mask = mask | ends if self.is_accepting else mask & ~ends
            mask.setflags(write=False)
            self._mask = mask
        return self._mask

    def fill_mask(self, out: Mask, *, budget: int | None = None) -> None:
        """Write the mask into `out`. A `budget` of one leaves end-of-sequence alone where it is allowed.

        Raises:
            RequestError: nothing may be drawn any more, or llguidance gave up.
        """
        if budget is not None and budget < 1:
            raise RequestError("no token is left: raise max_new_tokens")
        mask = self.mask()
        if budget == 1 and not self._plans[-1]:
            ends = _bits(self.constraint.engine.vocabulary.eos_ids, len(mask))
            mask = mask & ends if (mask & ends).any() else mask
        np.copyto(out, mask)

    def allowed(self, *, budget: int | None = None) -> npt.NDArray[np.intp]:
        """Ids of the tokens allowed next, ascending."""
        words = np.zeros(self.constraint.engine.vocabulary.mask_words, np.uint32)
        self.fill_mask(words, budget=budget)
        return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))

    def advance(self, token: int) -> None:
        """Read one token.

        Raises:
            RequestError: it is not allowed here; the matcher stays where it was.
        """
        if not self.try_advance(token):
            raise RequestError(f"token {token} is not allowed here: sample under the mask of this very step")

    def try_advance(self, token: int) -> bool:
        plan = self._plans[-1]
        if self._ended_at is not None or (plan and plan[0] != token):
            return False
        if token in self.constraint.engine.vocabulary.eos_ids:
            if not self.is_accepting:
                return False
            self._ended_at = len(self._readings)
            self._push((token,), (), is_bytes=False)
            return True
        if not self._read((token,)):
            return False
        self._push((token,), plan[1:], is_bytes=False)
        return True

    def advance_bytes(self, data: bytes) -> bool:
        try:
            tokens = tuple(self.constraint.engine.vocabulary.greedy(data))
        except KeyError:
            return False
        if self._ended_at is not None or not self._read(tokens):
            return False
        self._push(tokens, (), is_bytes=True)
        return True

    def rollback(self, readings: int) -> None:
        if not 0 <= readings <= len(self._readings):
            raise RequestError(f"cannot roll back {readings} of {len(self._readings)} readings")
        if not readings:
            return
        tokens = sum(map(len, self._readings[-readings:]))
        del self._readings[-readings:], self._is_bytes[-readings:], self._plans[-readings:]
        if self._ended_at is not None and self._ended_at >= len(self._readings):
            self._ended_at = None
            tokens -= 1
        if tokens and not self._matcher.rollback(tokens):
            self._check()
        self._mask = None

    def fork(self) -> LLGuidanceMatcher:
        other = LLGuidanceMatcher(self.constraint, self._matcher.deep_copy())
        other._readings, other._is_bytes, other._plans = self._readings[:], self._is_bytes[:], self._plans[:]
        other._ended_at, other._mask = self._ended_at, self._mask
        return other

    def forced_bytes(self) -> bytes:
        if self._ended_at is not None or self.is_accepting:
            return b""
        return bytes(self._matcher.compute_ff_bytes())

    def forced_tokens(self, encode: Encode, tail: Sequence[int] = ()) -> list[int]:
        """llguidance's fast-forward tokens, as far as `encode` writes them behind `tail` too."""
        if self._ended_at is not None:
            return []
        if self._plans[-1]:
            return list(self._plans[-1])
        forced = list(self._matcher.compute_ff_tokens())
        self._check()
        if not forced or self.is_accepting:
            return []
        spelled = self.constraint.engine.vocabulary.tokens
        encoded = encode(b"".join(spelled[t] for t in (*tail, *forced)))
        if encoded is None or list(encoded[: len(tail)]) != list(tail):
            return []
        confirmed = encoded[len(tail) :]
        n = next((i for i, t in enumerate(forced) if i >= len(confirmed) or confirmed[i] != t), len(forced))
        return forced[:n]

    def plan_forced(self, encode: Encode, tail: Sequence[int] = ()) -> list[int]:
        tokens = self.forced_tokens(encode, tail)
        self._plans[-1] = tuple(tokens)
        return tokens

    def cost_to_accept(self) -> int:
        """A lower bound, unlike `Matcher`'s: end-of-sequence and the forced bytes in the longest tokens there are."""
        if self._ended_at is not None:
            return 0
        if self.is_accepting:
            return 1
        longest = self.constraint.engine.vocabulary.max_token_len
        return 1 + max(1, -(-len(self.forced_bytes()) // longest))

    def _read(self, tokens: tuple[int, ...]) -> bool:
        """Read tokens if all are allowed. A refused one would break an LLMatcher for good, so it is asked first."""
        if any(not 0 <= t < len(self.constraint.engine.vocabulary) for t in tokens):
            return False
        if self._matcher.validate_tokens(list(tokens)) < len(tokens):
            return False
        read = self._matcher.consume_tokens(list(tokens))
        self._check()
        return bool(read)

    def _push(self, tokens: tuple[int, ...], plan: tuple[int, ...], *, is_bytes: bool) -> None:
        self._readings.append(tokens)
        self._is_bytes.append(is_bytes)
        self._plans.append(plan)
        self._mask = None

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"llguidance gave up on the constraint: {_first_line(self._matcher)}")


class _Tokenizer:
    """What llguidance wants to know of a tokenizer. Tokens without bytes are special: no grammar allows them."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, encode: Encode) -> None:
        special = set(vocabulary.eos_ids) | {i for i, t in enumerate(vocabulary.tokens) if not t}
        self.eos_token_id = vocabulary.eos_ids[0]
        self.tokens = [b"<%d>" % i if i in special else t for i, t in enumerate(vocabulary.tokens)]
        self.special_token_ids = sorted(special)
        self._vocabulary = vocabulary
        self._encode = encode

    def __call__(self, text: bytes) -> list[int]:
        """Tokens of `text`; none where it cannot be spelled, since an error here would take the process down."""
        encoded = self._encode(text)
        if encoded is None:
            try:
                encoded = self._vocabulary.greedy(text)
            except KeyError:
                encoded = []
        return list(encoded)


def _llguidance() -> Any:
    """The package; an optional dependency, so imported where it is used."""
    try:
        return importlib.import_module("llguidance")
    except ImportError:
        raise UnsupportedFeature(
            "constraint_engine='llguidance'", "the package is not installed: pip install 'palmette[llguidance]'"
        ) from None


def _json_options(options: SchemaOptions) -> dict[str, Any]:
    item, key = (",", ":") if options.compact else (", ", ": ")
    out: dict[str, Any] = {"item_separator": item, "key_separator": key, "lenient": not options.strict}
    out["whitespace_flexible"] = options.whitespace > 0
    if options.whitespace:
        out["whitespace_pattern"] = f"{_JSON_SPACE}{{1,{options.whitespace}}}"
    return out


def _keyword(spec: Spec) -> str:
    kinds = {Regex: "regex", Choices: "choices", JsonSchema: "json_schema", Grammar: "grammar"}
    return kinds.get(type(spec), type(spec).__name__)


def _first_line(matcher: Any) -> str:
    error: str = matcher.get_error()
    return " ".join(error.split("\n<state>")[0].split())[:300]


def _bits(ids: Sequence[int], words: int) -> Mask:
    mask = np.zeros(words, np.uint32)
    for token in ids:
        mask[token // 32] |= np.uint32(1 << (token % 32))
    return mask
