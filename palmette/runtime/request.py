"""A request while it lives: the mutable state that the scheduler alone changes.

    WAITING --admitted--> RUNNING --ends--> FINISHED
       ^  |                  |                 ^
       |  `---refused, cancelled, failed-------'
       `-----retracted-------'

Knows what was asked, what has been computed and which slots hold it. Plain integers; knows neither time nor tensors.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from palmette.errors import Cancelled, PalmetteError, RequestError
from palmette.runtime.choice_trie import TriePass, TriePlan
from palmette.runtime.output import Output
from palmette.runtime.radix_cache import Probe
from palmette.runtime.radix_node import RadixNode
from palmette.runtime.tokens import Tokens
from palmette.types import (
    EmbedEvent,
    EmbedRequest,
    Event,
    Finish,
    FinishReason,
    GenerateRequest,
    Hints,
    Request,
    ScoreEvent,
    ScoreRequest,
    TokenEvent,
    TokenLogprob,
    TokenPath,
    Usage,
)

if TYPE_CHECKING:  # a guide computes masks with numpy, which this module does without
    from palmette.runtime.guide import Guide


class Status(Enum):
    """See the module's diagram."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Job:
    """What every kind of request has.

    Its tokens and where their keys and values are:

        tokens      [ in the tree, path of `node` | private, slots in `tail` | not computed ]
                    0                        node.depth                computed_len     len(tokens)

    While a step that draws its next token is in flight, all its tokens count as computed; where the step behind that
    one goes on with a token that nobody knows yet, computed_len is beyond len(tokens) by one.
    """

    __slots__ = (
        "cached",
        "computed_len",
        "deadline",
        "extend_end",
        "fork_marked",
        "is_first_run",
        "is_proven",
        "node",
        "number",
        "overtaken",
        "peak_len",
        "probe",
        "prompt",
        "prompt_len",
        "request_id",
        "row",
        "run",
        "settled_len",
        "status",
        "submitted",
        "tail",
        "tokens",
        "unwritten",
    )

    def __init__(self, request: Request, *, number: int, now: float) -> None:
        self.request_id = request.request_id
        self.tokens = Tokens(request.token_ids)  # the prompt, then what was sampled
        self.prompt_len = len(self.tokens)
        self.prompt = request.token_ids if isinstance(request.token_ids, TokenPath) else None
        self.number = number  # order of arrival
        self.submitted = now
        self.deadline = None if request.timeout is None else now + request.timeout
        self.status = Status.WAITING
        # while waiting
        self.overtaken = 0  # younger requests that were admitted before it
        self.probe: Probe | None = None  # where its tokens left the tree when a policy last looked
        self.fork_marked = False  # its arrival was counted among the siblings of its fork
        # while running
        self.run = 0  # how many of its runs are over: what a step in flight computes belongs to one run
        self.row = -1  # of the page table
        self.node: RadixNode | None = None  # locked
        self.tail: list[int] = []  # whole pages of slots for tokens[node.depth:]
        self.computed_len = 0  # tokens whose keys and values are there, or in flight
        self.settled_len = 0  # of those, as far as steps of this run that were applied have come
        self.extend_end = 0  # tokens known when it was admitted: up to here it extends, then it decodes
        self.unwritten: tuple[int, array[int]] | None = None  # (index, slots) its page table does not have yet
        self.is_proven = False  # logits computed in this run were finite
        self.peak_len = 0  # tokens that were ever computed
        # for its usage
        self.cached = 0  # prompt tokens read from the cache
        self.is_first_run = True

    @property
    def namespace(self) -> str:
        return ""

    @property
    def priority(self) -> int:
        return 0

    @property
    def hints(self) -> Hints:
        return _NO_HINTS

    @property
    def match_limit(self) -> int:
        """Tokens that may be read from the cache: at least one is left to compute."""
        return len(self.tokens) - 1

    @property
    def is_private(self) -> bool:
        """Are its tokens kept out of the tree while it runs?"""
        return False

    @property
    def rows(self) -> list[int]:
        """Rows of the page table that it holds."""
        return [self.row] if self.row >= 0 else []

    @property
    def is_extending(self) -> bool:
        return self.computed_len < self.extend_end

    @property
    def progress(self) -> int:
        """Work that a retraction would delay: sampled tokens."""
        return len(self.tokens) - self.prompt_len

    @property
    def target_len(self) -> int:
        """Tokens it will hold slots for at most."""
        return self.prompt_len

    def end_event(self, reason: FinishReason, now: float, error: PalmetteError | None = None) -> Event:
        """The terminal event. Built once."""
        raise NotImplementedError

    def usage(self, now: float) -> Usage:
        return Usage(prompt_tokens=self.prompt_len, cached_tokens=self.cached, seconds=now - self.submitted)


class Added(NamedTuple):
    """What a hole gained: tokens, the text they brought out, and how it ended if it did."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    reason: FinishReason | None = None
    matched: str | int | None = None

    def then(self, later: Added) -> Added:
        return Added(self.text + later.text, self.token_ids + later.token_ids, later.reason, later.matched)


class GenerateJob(Job):
    """A GenerateRequest.

    With a constraint, forced tokens follow a drawn one at once (`force`): the step after that computes them all in one
    extend. Where logprobs are wanted they are `withheld` until that step has computed theirs.
    """

    __slots__ = (
        "forced_logprobs",
        "guide",
        "num_forced",
        "num_rewritten",
        "output",
        "prompt_logprobs",
        "request",
        "steered",
        "withheld",
    )

    def __init__(
        self, request: GenerateRequest, output: Output, guide: Guide | None = None, *, number: int, now: float
    ) -> None:
        super().__init__(request, number=number, now=now)
        self.request = request
        self.output = output
        self.guide = guide
        self.prompt_logprobs: list[TokenLogprob] = []
        if self.logprob_start == 0:
            self.prompt_logprobs.append(TokenLogprob(self.tokens[0], None))
        self.num_forced = 0
        self.num_rewritten = 0  # drawn tokens that a jump of the paper's kind replaced
        self.steered = False  # the end of the token budget changed a draw
        self.withheld: Added | None = None  # forced tokens, the last of `tokens`, that nobody was told of
        self.forced_logprobs: list[TokenLogprob] = []  # of the first of them

    @property
    def namespace(self) -> str:
        return self.request.namespace

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def hints(self) -> Hints:
        return self.request.hints

    @property
    def logprob_start(self) -> int | None:
        """The first prompt position that gets a row, if any does."""
        params = self.request.logprobs
        if params is None or params.start_len is None or params.start_len >= self.prompt_len:
            return None
        return params.start_len

    @property
    def first_missing(self) -> int | None:
        """The first known token whose logprob is still to be computed, and is wanted."""
        start = self.logprob_start
        if start is not None and start + len(self.prompt_logprobs) < self.prompt_len:
            return start + len(self.prompt_logprobs)
        return self.first_withheld

    @property
    def first_withheld(self) -> int | None:
        """The first forced token whose logprob is still to be computed, and is wanted."""
        if self.withheld is None or len(self.forced_logprobs) == len(self.withheld.token_ids):
            return None
        return len(self.tokens) - len(self.withheld.token_ids) + len(self.forced_logprobs)

    @property
    def match_limit(self) -> int:
        missing = self.first_missing  # its logprob comes from the token before it
        return len(self.tokens) - 1 if missing is None else missing - 1

    @property
    def is_private(self) -> bool:
        return self.logprob_start is not None

    @property
    def target_len(self) -> int:
        return self.prompt_len + max(0, self.output.max_new_tokens - 1)  # the last token's are never computed

    @property
    def wants_token(self) -> bool:
        """Is anything sampled, now that its known tokens are computed?"""
        return self.output.max_new_tokens > 0 and (self.withheld is None or self.withheld.reason is None)

    @property
    def is_awaiting(self) -> bool:
        """Is its next token drawn by a step in flight, or its end brought by one?"""
        return self.computed_len >= len(self.tokens)

    @property
    def can_go_ahead(self) -> bool:
        """May there be anything to compute behind the token that a step in flight draws?

        Not if it is the last that is allowed. It may be the last all the same, or others may be forced behind it.
        """
        return self.wants_token and self.num_left > 1

    @property
    def num_left(self) -> int:
        """Tokens that may still come."""
        return self.output.max_new_tokens - len(self.output.token_ids)

    def append(self, token_id: int) -> Added:
        """Take in a drawn token, with what was withheld before it."""
        added = self._push(token_id)
        before, self.withheld = self.withheld, None
        return added if before is None else before.then(added)

    def force(self) -> Added:
        """Take in the tokens that are forced now; without jumps they wait for their draws, which have no choice."""
        forced = Added()
        guide = self.guide
        if guide is None or not guide.jumps:
            return forced
        while forced.reason is None and (token := guide.next_forced(self.num_left)) is not None:
            self.num_forced += 1
            forced = forced.then(self._push(token))
        if forced.token_ids:
            self.extend_end = len(self.tokens)
        return forced

    def rewrite(self, kept: int, token_ids: Sequence[int]) -> Added:
        """Take in a jump of the paper's kind, which the guide has read. Not while the job runs."""
        assert self.status is Status.WAITING, "its keys and values belong to other tokens"
        assert self.guide is not None, "only a constraint jumps"
        old = len(self.output.token_ids)
        text, reason, matched = self.output.rewrite(kept, token_ids)
        self.num_rewritten += old - kept
        self.num_forced += len(self.output.token_ids) - old
        self.tokens.truncate(self.prompt_len)
        self.tokens.extend(self.output.token_ids)
        self.peak_len = min(self.peak_len, self.prompt_len + kept)
        if reason is not FinishReason.STOP and self.guide.is_complete:
            reason = FinishReason.STOP
        return Added(text, tuple(token_ids[old - kept :]), reason, matched)

    def take_forced_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Those of the tokens that are withheld no longer."""
        taken, self.forced_logprobs = tuple(self.forced_logprobs), []
        return taken

    def _push(self, token_id: int) -> Added:
        self.tokens.append(token_id)
        text, reason, matched = self.output.push(token_id)
        if self.guide is not None and reason is not FinishReason.STOP:
            self.guide.advance(token_id)
            if self.guide.is_complete:
                reason = FinishReason.STOP
        return Added(text, (token_id,), reason, matched)

    def end_event(self, reason: FinishReason, now: float, error: PalmetteError | None = None) -> TokenEvent:
        return self.last_event(reason, now, error=error)

    def last_event(
        self,
        reason: FinishReason,
        now: float,
        *,
        text: str = "",
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
        matched: str | int | None = None,
        error: PalmetteError | None = None,
    ) -> TokenEvent:
        """The terminal event, with what the last step added."""
        kept = self.output.end()
        generated = len(self.output.token_ids)
        is_lost = reason in (FinishReason.CANCELLED, FinishReason.FAILED)
        finish = Finish(
            reason=reason,
            token_ids=kept.token_ids,
            tail=kept.tail,
            matched=matched,
            usage=Usage(
                prompt_tokens=self.prompt_len,
                cached_tokens=self.cached,
                sampled_tokens=generated - self.num_forced,
                forced_tokens=self.num_forced,
                retokenized_tokens=self.num_rewritten,
                wasted_tokens=generated if is_lost else kept.num_dropped,
                seconds=now - self.submitted,
            ),
            prompt_logprobs=tuple(self.prompt_logprobs),
            error=error,
            steered=self.steered,
            unenforced=() if self.guide is None else self.guide.unenforced,
        )
        return TokenEvent(self.request_id, text + kept.text, token_ids, logprobs, finish)


class ScoreJob(Job):
    """A ScoreRequest: its prompt, then the inner nodes of its trie, once behind the prompt and once behind nothing."""

    __slots__ = ("conditional", "is_prompt_scored", "plan", "request", "unconditional")

    def __init__(self, request: ScoreRequest, *, number: int, now: float) -> None:
        super().__init__(request, number=number, now=now)
        self.request = request
        self.plan = TriePlan(request.trie)
        self.restart()

    def restart(self) -> None:
        """Nothing of the trie is scored; its slots are somebody else's business."""
        num_nodes = len(self.request.trie.token_ids)
        self.conditional = TriePass(self.prompt_len, num_nodes)
        self.unconditional = TriePass(0, num_nodes) if self.request.unconditional else None
        if self.unconditional is not None:
            for node, _ in self.plan.roots:
                self.unconditional.logprobs[node] = 0.0  # the first token behind an empty prompt counts nothing
        self.is_prompt_scored = False

    @property
    def namespace(self) -> str:
        return self.request.namespace

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def hints(self) -> Hints:
        return self.request.hints

    @property
    def rows(self) -> list[int]:
        rows = [self.row, -1 if self.unconditional is None else self.unconditional.row]
        return [row for row in rows if row >= 0]

    @property
    def passes(self) -> tuple[TriePass, ...]:
        return (self.conditional,) if self.unconditional is None else (self.conditional, self.unconditional)

    @property
    def is_scored(self) -> bool:
        return self.is_prompt_scored and all(p.num_done == self.plan.num_inner for p in self.passes)

    @property
    def nodes_left(self) -> int:
        """Inner nodes still to be scheduled."""
        return self.plan.num_inner * len(self.passes) - sum(p.num_scheduled for p in self.passes)

    def end_event(self, reason: FinishReason, now: float, error: PalmetteError | None = None) -> ScoreEvent:
        if error is not None or reason is FinishReason.CANCELLED:
            return ScoreEvent(self.request_id, usage=self.usage(now), error=error or Cancelled("cancelled"))
        unconditional = () if self.unconditional is None else tuple(self.unconditional.logprobs)
        return ScoreEvent(self.request_id, tuple(self.conditional.logprobs), unconditional, self.usage(now))


class EmbedJob(Job):
    """An EmbedRequest: computed whole in one step, in slots of its own that the tree never sees."""

    __slots__ = ("embedding", "request")

    def __init__(self, request: EmbedRequest, *, number: int, now: float) -> None:
        super().__init__(request, number=number, now=now)
        self.request = request
        self.embedding: tuple[float, ...] = ()

    @property
    def is_private(self) -> bool:
        return True

    @property
    def match_limit(self) -> int:
        return 0

    def end_event(self, reason: FinishReason, now: float, error: PalmetteError | None = None) -> EmbedEvent:
        if error is not None or reason is FinishReason.CANCELLED:
            return EmbedEvent(self.request_id, usage=self.usage(now), error=error or Cancelled("cancelled"))
        return EmbedEvent(self.request_id, self.embedding, self.usage(now))


AnyJob: TypeAlias = GenerateJob | ScoreJob | EmbedJob


def refusal(request: Request, reason: FinishReason, error: PalmetteError) -> Event:
    """The one event of a request that never became a job."""
    usage = Usage(prompt_tokens=len(request.token_ids))
    if isinstance(request, GenerateRequest):
        return TokenEvent(request.request_id, finish=Finish(reason, usage=usage, error=error))
    if isinstance(request, ScoreRequest):
        return ScoreEvent(request.request_id, usage=usage, error=error)
    return EmbedEvent(request.request_id, usage=usage, error=error)


def as_request_error(error: Exception) -> PalmetteError:
    """What a request is told when something raised while it was handled."""
    if isinstance(error, PalmetteError):
        return error
    failed = RequestError(f"the request failed: {error}")
    failed.__cause__ = error
    return failed


_NO_HINTS = Hints()
