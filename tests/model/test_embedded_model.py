"""The embedded model's real weights: its logits are those of transformers, however its tokens are scheduled."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from palmette.runtime.model_runner import ModelRunner
from palmette.runtime.models.load import load_model
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow, TreeRow
from tests.runtime.models.checkpoints import our_logits, reference_logits
from tests.runtime.naive import tree_path

pytestmark = pytest.mark.model

TEXT = """The following is a conversation about gravity. Question: why do things fall? Answer: because mass bends
spacetime, and things follow the straightest path there is. In code: `def fall(h): return (2 * h / 9.81) ** 0.5`.
Größe, naïve, 日本語 and 😀 are words too. 1 2 3 4 5 6 7 8 9 10 11 12."""


@cache
def embedded() -> LoadedModel:
    return load_model("smollm2")


def prompt() -> tuple[int, ...]:
    return tuple(embedded().tokenizer.encode(TEXT))


def assert_logits_agree(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal logprobs within 1e-3, and the same best token wherever it leads by more than that."""
    ours, theirs = got.log_softmax(-1), wanted.log_softmax(-1)
    likely = theirs > -12  # what could ever be drawn
    assert (ours - theirs)[likely].abs().max() < 1e-3
    best = theirs.topk(2).values
    leads = best[:, 0] - best[:, 1] > 1e-3
    assert torch.equal(ours.argmax(-1)[leads], theirs.argmax(-1)[leads])


def test_what_was_loaded() -> None:
    loaded = embedded()
    config = loaded.config
    assert (config.family, config.num_layers, config.vocab_size, config.context_len) == ("llama", 30, 49152, 8192)
    assert loaded.decoder.weights.num_parameters == 134_515_008
    assert loaded.name == "smollm2"
    assert loaded.tokenizer.chat_template.exists
    assert loaded.digest == load_model("smollm2").digest


def test_logits_are_those_of_transformers(hf_embedded: Any) -> None:
    ids = prompt()
    wanted = reference_logits(hf_embedded, ids)
    assert_logits_agree(our_logits(embedded().decoder, ids), wanted)
    assert_logits_agree(our_logits(embedded().decoder, ids, (64, len(ids) - 69, 1, 1, 1, 1, 1)), wanted)


def test_siblings_and_tries_score_like_each_sequence_alone(hf_embedded: Any) -> None:
    loaded, shared = embedded(), prompt()[:70]
    encode = loaded.tokenizer.encode
    endings = [tuple(encode(text)) for text in (" mass", " Because", "\n\n1. It")]
    runner = ModelRunner(loaded.decoder, num_slots=400, max_running_rows=8)
    prefix = tuple(range(70))
    runner.forward(ScheduledBatch((ScheduledRow(0, shared, 0, prefix),)))

    slots = iter(range(70, 400))
    rows = [
        ScheduledRow(i, ids, 70, tuple(next(slots) for _ in ids), prefix=(0, prefix), logits_from=len(ids) - 1)
        for i, ids in enumerate(endings)
    ]
    ids, parents = tuple(encode(" yes no yellow green")), (-1, -1, 0, 1)
    ids = ids[:4]
    tree = TreeRow(70, parents, 0)
    nodes = tuple(next(slots) for _ in ids)
    rows.append(ScheduledRow(3, ids, 70, nodes, prefix=(0, prefix), logits_from=0, tree=tree))
    got = runner.forward(ScheduledBatch(tuple(rows)))

    paths = [*endings, *(tuple(ids[n] for n in tree_path(parents, node)) for node in range(4))]
    wanted = torch.stack([reference_logits(hf_embedded, shared + path)[-1] for path in paths])
    assert_logits_agree(got, wanted)


def test_an_embedding_is_closer_to_a_paraphrase_than_to_another_subject() -> None:
    loaded = embedded()
    runner = ModelRunner(loaded.decoder, num_slots=64, max_running_rows=1)

    def embed(text: str) -> torch.Tensor:
        ids = tuple(loaded.tokenizer.encode(text))
        return runner.embed(ids, tuple(range(len(ids))), 0)

    cat, again, tax = (
        embed("The cat sleeps on the sofa."),
        embed("A cat is asleep on the couch."),
        embed("Tax law 2019:"),
    )
    assert cat @ again > cat @ tax
