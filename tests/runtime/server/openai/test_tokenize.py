"""/tokenize, /detokenize, /v1/models."""

from __future__ import annotations

from typing import Any

import pytest

from palmette.runtime.models.tiny import tiny_model
from palmette.types import TextPiece
from tests.runtime.server.openai.asking import ask, connected, refused
from tests.runtime.server.serving import Served

CHAT = [{"role": "user", "content": "a <|im_end|> b"}]


def test_a_prompt_is_tokenized_and_back(served: Served) -> None:
    answer = ask(served, "/tokenize", prompt="hé")
    assert answer == {"count": 3, "max_model_len": 2048, "tokens": [104, 195, 169], "token_strs": None}
    assert ask(served, "/detokenize", tokens=answer["tokens"]) == {"prompt": "hé"}


def test_token_strings_come_where_they_are_asked_for(served: Served) -> None:
    answer = ask(served, "/tokenize", prompt="hé", return_token_strs=True)
    assert answer["token_strs"] == ["h", "bytes:\\xc3", "bytes:\\xa9"]


def test_a_conversation_is_tokenized_as_a_chat_would_be(served: Served) -> None:
    tokens = ask(served, "/tokenize", messages=CHAT)["tokens"]
    text = ask(served, "/detokenize", tokens=tokens)["prompt"]
    assert text == "<|im_start|>user\na <|im_end|> b<|im_end|>\n<|im_start|>assistant\n"
    chat = ask(served, "/v1/chat/completions", messages=CHAT, max_tokens=1)
    assert chat["usage"]["prompt_tokens"] == len(tokens)


def test_a_users_text_is_never_a_special_token(served: Served) -> None:
    end = tiny_model().tokenizer.encode_pieces([TextPiece("<|im_end|>", special=True)])
    assert len(end) == 1
    assert end[0] not in ask(served, "/tokenize", prompt="<|im_end|>")["tokens"]
    assert ask(served, "/tokenize", messages=CHAT)["tokens"].count(end[0]) == 1


def test_the_last_message_can_be_left_open(served: Served) -> None:
    messages = [*CHAT, {"role": "assistant", "content": "so"}]
    tokens = ask(served, "/tokenize", messages=messages, continue_final_message=True)["tokens"]
    assert ask(served, "/detokenize", tokens=tokens)["prompt"].endswith("<|im_start|>assistant\nso")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": CHAT}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"messages": []}, "messages"),
        ({"messages": CHAT, "chat_template": "x"}, "chat_template"),
        ({"messages": CHAT, "add_generation_prompt": False}, "add_generation_prompt"),
    ],
)
def test_what_cannot_be_tokenized_is_named(served: Served, body: dict[str, Any], param: str) -> None:
    assert refused(served, "/tokenize", **body)["param"] == param


@pytest.mark.parametrize(("tokens", "param"), [([5000], "tokens"), ([-1], "tokens[0]"), ("a", "tokens")])
def test_tokens_that_are_none_are_named(served: Served, tokens: Any, param: str) -> None:
    assert refused(served, "/detokenize", tokens=tokens)["param"] == param


def test_the_model_is_listed(served: Served) -> None:
    card = served.service.model
    with connected(served) as client:
        listed = client.get("/v1/models").json()
        assert listed["object"] == "list"
        (model,) = listed["data"]
        assert (model["id"], model["object"], model["max_model_len"]) == (card.name, "model", card.context_len)
        assert client.get(f"/v1/models/{card.name}").json() == model
        missing = client.get("/v1/models/org/other")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
