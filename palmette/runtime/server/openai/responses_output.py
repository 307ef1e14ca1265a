"""The output of a response: items made of deltas, and the events that tell of them as they grow.

    deltas --take--> items: reasoning, message, function_call
                `--> output_item.added, content_part.added, output_text.delta, ..., output_item.done

Knows the form of items and events. Knows neither the service nor how events are numbered and sent.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from palmette.runtime.server.openai.reply import CallArguments, CallStart, ContentDelta, Delta

Told: TypeAlias = tuple[str, dict[str, Any]]  # an event's type and its fields
Row: TypeAlias = dict[str, Any]  # a logprob


class Output:
    """Of one response."""

    def __init__(self, name: str) -> None:
        """
        Args:
            name: what the items' ids end with.
        """
        self.items: list[dict[str, Any]] = []
        self._name = name
        self._is_open = False  # the last item goes on
        self._rows: list[Row] = []  # of text that is still held back

    def take(self, delta: Delta, rows: list[Row]) -> list[Told]:
        """What a delta adds; `rows` are of the tokens that brought it."""
        if isinstance(delta, CallStart):
            self._rows.clear()
            return [*self.close("completed"), *self._begin_call(delta)]
        if isinstance(delta, CallArguments):
            self.items[-1]["arguments"] += delta.text
            return [("response.function_call_arguments.delta", {**self._place(), "delta": delta.text})]
        kind = "message" if isinstance(delta, ContentDelta) else "reasoning"
        told: list[Told] = []
        if not self._is_open or self.items[-1]["type"] != kind:
            told = [*self.close("completed"), *self._begin_text(kind)]
        part = self.items[-1]["content"][0]
        part["text"] += delta.text
        fields = {**self._place(), "content_index": 0, "delta": delta.text}
        if kind == "reasoning":
            return [*told, ("response.reasoning_text.delta", fields)]
        mine = [*self._rows, *rows]
        self._rows.clear()
        part["logprobs"] += mine
        return [*told, ("response.output_text.delta", {**fields, "logprobs": mine})]

    def hold(self, rows: list[Row]) -> None:
        """Rows of tokens that brought no delta yet."""
        self._rows += rows

    def finish(self, status: str) -> list[Told]:
        """The end: a response has at least one item."""
        told = [] if self.items else self._begin_text("message")
        if self._is_open and self.items[-1]["type"] == "message":
            self.items[-1]["content"][0]["logprobs"] += self._rows
        return told + self.close(status)

    def close(self, status: str) -> list[Told]:
        """The last item has ended, if it has not before."""
        if not self._is_open:
            return []
        self._is_open = False
        item = self.items[-1]
        item["status"] = status
        place = self._place()
        told: list[Told] = []
        if item["type"] == "function_call":
            arguments = {**place, "name": item["name"], "arguments": item["arguments"]}
            told.append(("response.function_call_arguments.done", arguments))
        else:
            part = item["content"][0]
            text = {**place, "content_index": 0, "text": part["text"]}
            if item["type"] == "message":
                told.append(("response.output_text.done", {**text, "logprobs": part["logprobs"]}))
            else:
                told.append(("response.reasoning_text.done", text))
            told.append(("response.content_part.done", {**place, "content_index": 0, "part": part}))
        told.append(("response.output_item.done", {"output_index": place["output_index"], "item": item}))
        return told

    def _begin_call(self, start: CallStart) -> list[Told]:
        return self._begin(
            {
                "id": f"fc_{len(self.items)}{self._name}",
                "type": "function_call",
                "status": "in_progress",
                "call_id": start.id,
                "name": start.name,
                "arguments": "",
            }
        )

    def _begin_text(self, kind: str) -> list[Told]:
        item: dict[str, Any]
        if kind == "message":
            item = {"id": f"msg_{len(self.items)}{self._name}", "type": kind, "status": "in_progress"}
            item |= {"role": "assistant", "content": []}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        else:
            item = {"id": f"rs_{len(self.items)}{self._name}", "type": kind, "status": "in_progress"}
            item |= {"summary": [], "content": []}
            part = {"type": "reasoning_text", "text": ""}
        told = self._begin(item)
        item["content"] = [part]
        return [*told, ("response.content_part.added", {**self._place(), "content_index": 0, "part": dict(part)})]

    def _begin(self, item: dict[str, Any]) -> list[Told]:
        self.items.append(item)
        self._is_open = True
        return [("response.output_item.added", {"output_index": len(self.items) - 1, "item": dict(item)})]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
