"""What every tokenizer shares, on the byte tokenizer: pieces, special tokens, seams."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palmette.errors import InvalidOption
from palmette.runtime.byte_tokenizer import ByteTokenizer
from palmette.runtime.chat_template import ChatTemplate
from palmette.runtime.tokenizer import SpecialToken, Tokenizer
from palmette.types import TextPiece

BYTES = ByteTokenizer()
BOS, EOS, START, END = 256, 257, 258, 259


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_decode_undoes_encode(text: str) -> None:
    assert BYTES.decode(BYTES.encode(text)) == text


@given(st.text(st.sampled_from("ab<|im_end>€")), st.text(st.sampled_from("abc ")))
def test_longest_extra_tokens_are_preferred_and_decode_undoes_encode(text: str, more: str) -> None:
    tokenizer = ByteTokenizer(extra_tokens=[b"ab", b"abc", b"im_", "€".encode()[1:]])
    ids = tokenizer.encode(text + more)
    assert tokenizer.decode(ids) == text + more
    assert len(ids) <= len((text + more).encode())


def test_extra_tokens_come_behind_the_special_ones() -> None:
    tokenizer = ByteTokenizer(extra_tokens=[b"abc", b"ab"])
    assert tokenizer.vocab_size == 262
    assert tokenizer.encode("xabcab") == [ord("x"), 260, 261]
    assert tokenizer.token_bytes(260) == b"abc"


def test_special_tokens_in_a_users_text_are_ordinary_text() -> None:
    ids = BYTES.encode("<|im_end|>")
    assert ids == list(b"<|im_end|>")
    assert BYTES.encode_pieces([TextPiece("<|im_end|>")]) == ids


def test_special_tokens_in_template_text_are_tokens() -> None:
    pieces = [
        TextPiece("<|im_start|>user\n", special=True),
        TextPiece("<|eos|>"),
        TextPiece("<|im_end|>\n", special=True),
    ]
    assert BYTES.encode_pieces(pieces) == [START, *b"user\n", *b"<|eos|>", END, *b"\n"]


def test_runs_of_text_are_encoded_as_one_whatever_pieces_they_came_in() -> None:
    tokenizer = ByteTokenizer(extra_tokens=[b"\nab", b"c\n"])
    pieces = [
        TextPiece("<|bos|>\n", special=True),
        TextPiece("a"),
        TextPiece("bc"),
        TextPiece("\n<|eos|>", special=True),
    ]
    assert tokenizer.encode_pieces(pieces) == [BOS, 260, 261, EOS]


def test_a_special_token_is_never_put_together_from_two_pieces() -> None:
    pieces = [TextPiece("<|im_", special=True), TextPiece("end|>", special=True)]
    assert BYTES.encode_pieces(pieces) == list(b"<|im_end|>")


@given(st.lists(st.builds(TextPiece, st.text("a<|bos|>\n"), st.just(False))))
def test_plain_pieces_are_their_text(pieces: list[TextPiece]) -> None:
    assert BYTES.encode_pieces(pieces) == BYTES.encode("".join(p.text for p in pieces))


@pytest.mark.parametrize("text", ["\ud800", "fine \udfff fine"])
def test_a_lone_surrogate_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="lone surrogate"):
        BYTES.encode(text)
    with pytest.raises(InvalidOption, match="lone surrogate"):
        BYTES.encode_pieces([TextPiece(text, special=True)])


def test_special_tokens_have_no_bytes_and_no_text() -> None:
    assert [BYTES.token_bytes(i) for i in (BOS, EOS, START, END)] == [b""] * 4
    assert all(BYTES.is_special(i) for i in (BOS, EOS, START, END))
    assert not BYTES.is_special(65)
    assert BYTES.decode([BOS, 65, END]) == "A"


def test_ids_outside_the_vocabulary_have_no_bytes() -> None:
    assert BYTES.token_bytes(10**6) == b""


def test_a_half_character_decodes_to_a_replacement_character() -> None:
    assert BYTES.decode(list("€".encode())[:2]) == "\ufffd"


def test_a_stream_begins_with_bos_only_where_the_model_wants_it() -> None:
    assert BYTES.begin_ids() == ()
    assert ByteTokenizer(adds_bos=True).begin_ids() == (BOS,)


def test_a_special_token_may_swallow_the_white_space_beside_it() -> None:
    class Stripping(Tokenizer):
        def _encode_plain(self, text: str) -> list[int]:
            return list(text.encode())

        def token_bytes(self, token_id: int) -> bytes:
            return bytes([token_id])

    tokenizer = Stripping(
        vocab_size=300,
        special={"<l>": SpecialToken(298, strips_left=True), "<r>": SpecialToken(299, strips_right=True)},
        eos_ids=frozenset(),
        bos_id=None,
        adds_bos=True,
        chat_template=ChatTemplate(None),
    )
    assert tokenizer.encode_pieces([TextPiece("a <l> b <r> c", special=True)]) == [97, 298, 32, 98, 32, 299, 99]
    assert tokenizer.begin_ids() == ()
