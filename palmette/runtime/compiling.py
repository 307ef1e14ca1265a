"""Constraints for one tokenizer: compiled once, kept while they are used, and compiled where no engine waits.

    Compiler    spec -> Constraint, on whatever thread calls it, with a cache of the last used
    CompileThread   the same in a thread of its own, so that a slow specification delays nobody else's tokens

Compiling touches a constraint that nobody has yet; afterwards it belongs to the engine's thread alone.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from importlib.util import find_spec
from queue import SimpleQueue
from typing import TypeAlias

from palmette.errors import PalmetteError, UnsupportedFeature
from palmette.fsm.compile import compile as compile_spec
from palmette.fsm.cursor import CompiledConstraint
from palmette.fsm.llguidance_engine import LLGuidanceEngine
from palmette.fsm.scan import Pattern
from palmette.fsm.vocabulary import Vocabulary
from palmette.runtime.config import ConstraintConfig
from palmette.runtime.request import as_request_error
from palmette.runtime.tokenizer import Tokenizer
from palmette.specs import Spec


class Compiler:
    """Thread-safe. Its constraints are not: they are for one thread."""

    def __init__(self, tokenizer: Tokenizer, config: ConstraintConfig | None = None) -> None:
        """
        Raises:
            UnsupportedFeature: the engine it is to use is not installed.
        """
        self._config = config or ConstraintConfig()
        self.limits = self._config.constraint_limits
        self._llguidance: LLGuidanceEngine | None = None
        if self._config.constraint_engine == "llguidance" and find_spec("llguidance") is None:
            raise UnsupportedFeature("constraint_engine='llguidance'", "pip install 'palmette[llguidance]'")
        self._tokenizer = tokenizer
        self._vocabulary: Vocabulary | None = None
        self._building = threading.Lock()
        self._cache: OrderedDict[Spec, CompiledConstraint] = OrderedDict()  # the last used at the end
        self._cache_lock = threading.Lock()
        self._patterns: dict[str, Pattern] = {}  # the engine's thread's

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer's tokens as bytes; built at first use, a fraction of a second."""
        with self._building:
            if self._vocabulary is None:
                tokens = [self._tokenizer.token_bytes(i) for i in range(self._tokenizer.vocab_size)]
                special = {token: text for text, token in self._tokenizer.special_tokens.items()}
                vocabulary = Vocabulary(tokens, eos_ids=self._tokenizer.eos_ids, special=special)
                vocabulary.warm_up()  # now, not in the middle of somebody's step
                self._vocabulary = vocabulary
            return self._vocabulary

    def cached(self, spec: Spec) -> CompiledConstraint | None:
        """What was compiled before, if it is still known."""
        with self._cache_lock:
            found = self._cache.get(spec)
            if found is not None:
                self._cache.move_to_end(spec)
            return found

    def compile(self, spec: Spec) -> CompiledConstraint:
        """
        Raises:
            UnsupportedConstraint: something would not be enforced, nothing satisfies it, or a limit is crossed.
        """
        known = self.cached(spec)
        if known is not None:
            return known
        made = self._compile(spec)
        start = made.matcher()
        _ = start.mask(), start.cost_to_accept()  # what the first step asks is part of the price
        with self._cache_lock:
            made = self._cache.setdefault(spec, made)  # two may have compiled it at once
            size = sum(constraint.nbytes for constraint in self._cache.values())
            while len(self._cache) > 1 and (
                len(self._cache) > self.limits.cached_constraints or size > self.limits.cached_bytes
            ):
                size -= self._cache.popitem(last=False)[1].nbytes
        return made

    def _compile(self, spec: Spec) -> CompiledConstraint:
        vocabulary = self.vocabulary
        if self._config.constraint_engine == "palmette":
            return compile_spec(spec, vocabulary, self.limits, clock=_clock)
        with self._building:
            if self._llguidance is None:
                self._llguidance = LLGuidanceEngine(vocabulary, self._tokenizer.encode_bytes)
        return self._llguidance.compile(spec)

    def pattern(self, text: str) -> Pattern:
        """A stop pattern, for the engine's thread alone; its automaton grows with the texts it is looked for in.

        Raises:
            UnsupportedConstraint, InvalidOption: it cannot be looked for.
        """
        known = self._patterns.get(text)
        if known is None:
            if len(self._patterns) >= self.limits.cached_constraints:
                self._patterns.clear()
            known = self._patterns[text] = Pattern(text, self.limits)
        return known


_Order: TypeAlias = tuple[Spec, Callable[[CompiledConstraint | PalmetteError], None]]


class CompileThread:
    """Compiles in order of arrival. Its thread starts with the first specification."""

    def __init__(self, compiler: Compiler, *, name: str = "palmette-constraints") -> None:
        self._compiler = compiler
        self._name = name
        self._inbox: SimpleQueue[tuple[Spec, Callable[[CompiledConstraint | PalmetteError], None]] | None] = (
            SimpleQueue()
        )
        self._thread: threading.Thread | None = None

    def submit(self, spec: Spec, done: Callable[[CompiledConstraint | PalmetteError], None]) -> None:
        """Compile `spec` and call `done`, on the compiling thread, with what came of it. Called by one thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._inbox.put((spec, done))

    def close(self) -> None:
        """Stop after what is being compiled; whatever waits is dropped."""
        self._inbox.put(None)

    def _run(self) -> None:
        while (order := self._inbox.get()) is not None:
            spec, done = order
            try:
                result: CompiledConstraint | PalmetteError = self._compiler.compile(spec)
            except Exception as error:  # noqa: BLE001 - one specification is one request's failure
                result = as_request_error(error)
            done(result)


def _clock() -> float:
    """Seconds; looked at inside the loops of compilation, where it also lets a waiting engine have the interpreter."""
    time.sleep(0)
    return time.monotonic()
