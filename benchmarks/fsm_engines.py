"""Mask engines behind one interface, for benchmarks: this package's and its peers, each where it is installed.

An engine compiles a specification; what comes back makes cursors. A cursor's `fill` is the library's own call with its
arguments bound, so that timing it times nothing of ours.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from palmette.specs import Choices, Grammar, JsonSchema, Regex, Spec

LONG_BUDGET = 4096  # tokens: never near its end in these walks


@dataclass(frozen=True)
class Cursor:
    """One request's place in a compiled constraint."""

    fill: Callable[[], object]  # computes the mask of this place
    advance: Callable[[int], bool]  # reads one token; False where the engine does not allow it


MakeCursor = Callable[[], Cursor]


class Engine(Protocol):
    """Holds the vocabulary in the engine's own form."""

    def compile(self, spec: Spec) -> MakeCursor:
        """Any exception means that the engine does not take the constraint."""
        ...


class Palmette:
    """This package.

    Without `compiled` its automata are Python's, as where they were not built; this process then has no others.
    With `budget` masks are filled as its runtime fills them: under a budget of tokens. With `prefetch` the masks that
    the next token may ask for are computed between the steps, as while a model computes; that time is not counted.
    """

    def __init__(
        self, tokens: list[bytes], eos: int, *, budget: int | None = None, prefetch: bool = False, compiled: bool = True
    ) -> None:
        from palmette.fsm.vocabulary import Vocabulary

        if not compiled:
            os.environ["PALMETTE_NATIVE"] = "0"
        self.vocabulary = Vocabulary(tokens, eos_ids=[eos])
        self.vocabulary.warm_up()
        self.budget = budget
        self.prefetch = prefetch

    def compile(self, spec: Spec) -> MakeCursor:
        from palmette.fsm.compile import compile

        constraint = compile(spec, self.vocabulary)
        out = np.zeros(self.vocabulary.mask_words, np.uint32)

        def cursor() -> Cursor:
            matcher = constraint.matcher()
            fill = partial(matcher.fill_mask, out, budget=self.budget)
            if not self.prefetch:
                return Cursor(fill, matcher.try_advance)

            def advance(token: int) -> bool:
                matcher.prefetch()
                return matcher.try_advance(token)

            return Cursor(fill, advance)

        return cursor


class LLGuidance:
    def __init__(self, tokens: list[bytes], eos: int) -> None:
        self.lib: Any = importlib.import_module("llguidance")
        peer = importlib.import_module("llguidance.numpy")
        longest = max(map(len, tokens))
        ids = {t: i for i, t in reversed(list(enumerate(tokens))) if t}

        class Tokenizer:
            eos_token_id, bos_token_id = eos, None

            def __init__(self) -> None:
                self.special_token_ids = [i for i, t in enumerate(tokens) if not t]
                self.tokens = [t or b"<special %d>" % i for i, t in enumerate(tokens)]

            def __call__(self, text: bytes) -> list[int]:
                out, at = [], 0
                while at < len(text):
                    end = min(len(text), at + longest)
                    while text[at:end] not in ids:
                        end -= 1
                    out.append(ids[text[at:end]])
                    at = end
                return out

        self.tokenizer = self.lib.LLTokenizer(self.lib.TokenizerWrapper(Tokenizer()))
        self.out = peer.allocate_token_bitmask(1, len(tokens))

    def compile(self, spec: Spec) -> MakeCursor:
        matcher_type = self.lib.LLMatcher
        if isinstance(spec, JsonSchema):
            written = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
            grammar = matcher_type.grammar_from_json_schema(spec.text, overrides=written)
        else:
            grammar = matcher_type.grammar_from_regex(as_regex(spec))
        first = matcher_type(self.tokenizer, grammar)
        if first.is_error():
            raise ValueError(first.get_error())

        def cursor() -> Cursor:
            matcher = first.deep_copy()
            fill = partial(matcher.unsafe_compute_mask_ptr, self.out.ctypes.data, self.out.nbytes)
            return Cursor(fill, matcher.consume_token)

        return cursor


class XGrammar:
    def __init__(self, tokens: list[bytes], eos: int) -> None:
        self.lib: Any = importlib.import_module("xgrammar")
        info = self.lib.TokenizerInfo(tokens, stop_token_ids=[eos])
        self.compiler = self.lib.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self.out = self.lib.allocate_token_bitmask(1, len(tokens))

    def compile(self, spec: Spec) -> MakeCursor:
        if isinstance(spec, JsonSchema):
            options = {"any_whitespace": False, "separators": (", ", ": "), "strict_mode": False}
            grammar = self.compiler.compile_json_schema(spec.text, **options)
        else:
            grammar = self.compiler.compile_regex(as_regex(spec))

        def cursor() -> Cursor:
            matcher = self.lib.GrammarMatcher(grammar)
            return Cursor(partial(matcher.fill_next_token_bitmask, self.out), matcher.accept_token)

        return cursor


class OutlinesCore:
    def __init__(self, tokens: list[bytes], eos: int) -> None:
        self.lib: Any = importlib.import_module("outlines_core")
        ids: dict[bytes, list[int]] = {}
        for i, token in enumerate(tokens):
            if token and i != eos:
                ids.setdefault(token, []).append(i)
        self.vocabulary = self.lib.Vocabulary(eos, ids)
        self.out = np.zeros((len(tokens) + 31) // 32, np.int32)

    def compile(self, spec: Spec) -> MakeCursor:
        if isinstance(spec, JsonSchema):
            pattern = self.lib.json_schema.build_regex_from_schema(spec.text, " ")
        else:
            pattern = as_regex(spec)
        index = self.lib.Index(pattern, self.vocabulary)

        def cursor() -> Cursor:
            guide = self.lib.Guide(index)

            def advance(token: int) -> bool:
                try:
                    guide.advance(token, return_tokens=False)
                except ValueError:
                    return False
                return True

            return Cursor(partial(guide.write_mask_into, self.out.ctypes.data, self.out.size, 4), advance)

        return cursor


ENGINES: dict[str, tuple[str, Callable[[list[bytes], int], Engine]]] = {  # name -> the module it needs, its maker
    "palmette": ("palmette", Palmette),
    "palmette, budget": ("palmette", partial(Palmette, budget=LONG_BUDGET)),
    "palmette, ahead": ("palmette", partial(Palmette, prefetch=True)),
    "palmette, Python": ("palmette", partial(Palmette, compiled=False)),
    "llguidance": ("llguidance", LLGuidance),
    "xgrammar": ("xgrammar", XGrammar),
    "outlines-core": ("outlines_core", OutlinesCore),
}


def why_missing(name: str) -> str | None:
    """Why the engine cannot be used here; None where it can."""
    module = ENGINES[name][0]
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed"
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"{module} does not load: {error}"
    return None


def version(name: str) -> str:
    """Of the peer; for this package, which runs from the checkout, whether its automata are compiled."""
    module = ENGINES[name][0]
    if module != "palmette":
        return importlib.metadata.version(module.replace("_", "-"))
    from palmette.fsm.native import library

    return "in Python" if name.endswith("Python") or library() is None else "compiled"


def as_regex(spec: Spec) -> str:
    """A regex or choices as one pattern that every engine reads."""
    if isinstance(spec, Choices):
        return "(" + "|".join(re.escape(t).replace("\\ ", " ").replace("\\-", "-") for t in spec.texts) + ")"
    assert isinstance(spec, Regex), f"{type(spec).__name__}, such as {Grammar.__name__}, has no one pattern"
    return spec.pattern
