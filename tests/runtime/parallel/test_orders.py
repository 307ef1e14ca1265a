"""Orders arrive as they were sent, whatever pieces the pipe hands out, and nothing else is an order."""

from __future__ import annotations

import io
import os
import threading
from array import array
from dataclasses import replace

import msgspec
import pytest

from palmette.runtime.config import ModelOptions
from palmette.runtime.models.tiny import tiny_config
from palmette.runtime.parallel.orders import (
    Build,
    Embed,
    Forward,
    Frames,
    KeepDrawn,
    Load,
    Order,
    RandomModel,
    Start,
    StoredModel,
    frame,
    write_all,
)
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow, TreeRow
from tests.runtime.parallel.split_models import shapes

BATCH = ScheduledBatch(
    (
        ScheduledRow(0, (1, 2, -1), 5, (7, 8, 9), prefix=(1, [3, 2, 1, 0]), logits_from=2),
        ScheduledRow(3, (4, 4), 2, (1 << 33, 11), tree=TreeRow(2, (-1, 0, 0), 1)),
    )
)
ORDERS: list[Order] = [
    Start(1, 2, "cpu", "/somewhere/meeting", 2.5, 1),
    Load(StoredModel(ModelOptions("a/b", dtype="bfloat16"))),
    *(Load(RandomModel(config, 3)) for config in shapes().values()),
    Build(10, 2, None, "int8"),
    Forward(BATCH),
    Embed((1, 2), (3, 4), 5),
    KeepDrawn((0, 3)),
]


def read(data: bytes) -> list[Order]:
    frames, decoder = Frames(io.BytesIO(data)), msgspec.msgpack.Decoder[Order](Order)
    found: list[Order] = []
    while (order := frames.read(decoder)) is not None:
        found.append(order)
    return found


def test_orders_arrive_as_they_were_sent() -> None:
    assert read(b"".join(frame(order) for order in ORDERS)) == ORDERS


def test_slots_may_come_in_any_sequence_and_keep_their_order() -> None:
    row = replace(BATCH.rows[0], prefix=(1, array("q", [5, 3, 1 << 40])))
    (found,) = read(frame(Forward(ScheduledBatch((row,)))))
    assert found == Forward(ScheduledBatch((replace(row, prefix=(1, [5, 3, 1 << 40])),)))
    with pytest.raises(NotImplementedError, match="object is no part of an order"):
        frame({"order": object()})


def test_a_pipe_that_ends_in_an_order_has_ended() -> None:
    data = frame(ORDERS[0])
    for size in range(len(data)):
        assert read(data[:size]) == []


def test_what_is_no_order_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        read(frame({"type": "Execute", "code": "1"}))
    with pytest.raises(msgspec.ValidationError):
        read(frame(Embed(("x",), (1,), 0)))  # type: ignore[arg-type]
    bad = msgspec.to_builtins(Load(StoredModel(ModelOptions())))
    bad["model"]["options"]["dtype"] = "int3"
    with pytest.raises(msgspec.ValidationError, match="dtype"):
        read(frame(bad))


def test_an_order_longer_than_a_pipe_holds_is_written_whole() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    order = Forward(ScheduledBatch((replace(BATCH.rows[0], prefix=(0, list(range(200_000)))),)))
    found: list[Order | None] = []
    with os.fdopen(reading, "rb") as source:
        reader = threading.Thread(
            target=lambda: found.append(Frames(source).read(msgspec.msgpack.Decoder[Order](Order)))
        )
        waits: list[None] = []

        def wait() -> None:
            if not waits:
                reader.start()
            waits.append(None)

        write_all(writing, frame(order), wait)
        reader.join()
    os.close(writing)
    assert found == [order]
    assert waits, "the pipe was never full"


def test_config_of_any_family_stays_the_same() -> None:
    for family in ("gemma2", "gemma3", "mistral"):
        order = Load(RandomModel(tiny_config(family)))
        (found,) = read(frame(order))
        assert found == order
        assert repr(found) == repr(order)
