"""Byteification: the bytes that each token of a vocabulary stands for, read off the tokenizer itself.

Ids and segmentation do not change. What a token spells is decided by the tokenizer's decoder, never by a table
of model names: byte-level tokenizers write each byte as one character of the GPT-2 alphabet, SentencePiece-style
ones write a space as U+2581 and single bytes as `<0xNN>`. Any other decoder is refused.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer

from storage.errors import UserError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SENTENCEPIECE_SPACE = "\u2581"


@dataclass(frozen=True)
class ByteView:
    """The vocabulary in bytes; V is the highest id + 1, and an id without a token stands for no byte."""

    spelling: tuple[bytes, ...]
    """V entries: what each token looks like in a text; of a special token its literal"""
    lengths: npt.NDArray[np.int32]
    """[V] bytes of each spelling"""
    special: npt.NDArray[np.bool_]
    """[V] special tokens: they cover no byte of a content"""
    arrow: pa.LargeBinaryArray
    """the spellings again, for look-ups by whole arrays of ids"""

    @property
    def size(self) -> int:
        return len(self.spelling)

    def boundary(self, size: int) -> npt.NDArray[np.bool_]:
        """[size] boundary tokens: the first byte is a space, tab or newline, or the token is special.

        `size` is the model's number of output rows; rows beyond the tokenizer's are no boundary.
        """
        starts = [text[:1] in (b" ", b"\t", b"\n") for text in self.spelling]
        mask = np.zeros(size, dtype=bool)
        mask[: self.size] = np.array(starts, dtype=bool) | self.special
        return mask

    def spell(self, ids: npt.NDArray[np.int32]) -> bytes:
        """The bytes of the tokens, joined."""
        taken = self.arrow.take(pa.array(ids))
        if not len(taken):
            return b""
        start, end = np.frombuffer(taken.buffers()[1], np.int64)[[taken.offset, taken.offset + len(taken)]]
        return bytes(taken.buffers()[2][start:end])


def byte_view(tokenizer: Tokenizer) -> ByteView:
    """The bytes of every token of a fast tokenizer.

    Raises UserError when the tokenizer's decoder is of neither known family.
    """
    state = json.loads(tokenizer.to_str())
    spell = _speller(state)
    added = {token["id"]: token for token in state["added_tokens"]}
    vocabulary = {id_: token for token, id_ in tokenizer.get_vocab(with_added_tokens=False).items()}
    size = max([*vocabulary, *added], default=-1) + 1
    spelling = tuple(
        _spell_added(added[id_], state) if id_ in added else spell(vocabulary.get(id_, "")) for id_ in range(size)
    )
    special = np.array([id_ in added and bool(added[id_]["special"]) for id_ in range(size)], dtype=bool)
    lengths = np.array([len(text) for text in spelling], dtype=np.int32)
    return ByteView(spelling, lengths, special, pa.array(spelling, pa.large_binary()))


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A tokenizer component as a flat list of its steps."""
    if part is None:
        return []
    nested = part.get("decoders") or part.get("pretokenizers") or part.get("normalizers")
    return [step for child in nested for step in _steps(child)] if nested is not None else [part]


def _is_byte_level(state: dict[str, Any]) -> bool:
    return any(step["type"] == "ByteLevel" for step in _steps(state["decoder"]))


def _is_sentencepiece(state: dict[str, Any]) -> bool:
    return any(
        step["type"] == "Metaspace"
        or (step["type"] == "Replace" and step["pattern"].get("String") == _SENTENCEPIECE_SPACE)
        for step in _steps(state["decoder"])
    )


def _speller(state: dict[str, Any]) -> Callable[[str], bytes]:
    if _is_byte_level(state):
        return _spell_byte_level
    if _is_sentencepiece(state):
        return _spell_sentencepiece
    kinds = [step["type"] for step in _steps(state["decoder"])] or ["none"]
    raise UserError(
        f"the tokenizer's decoder ({', '.join(kinds)}) is neither byte-level nor SentencePiece style, so the bytes of "
        "its tokens are not known exactly: convert it to one of these, or use another tokenizer"
    )


def _spell_byte_level(token: str) -> bytes:
    alphabet = _byte_alphabet()
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode()


def _spell_sentencepiece(token: str) -> bytes:
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace(_SENTENCEPIECE_SPACE, " ").encode()


def _spell_added(token: dict[str, Any], state: dict[str, Any]) -> bytes:
    content: str = token["content"]
    # Gemma's runs of spaces are added tokens, spelled with U+2581 as in the vocabulary
    if not _is_byte_level(state) and not token["special"]:
        return _spell_sentencepiece(content)
    return content.encode()


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 and up, in order."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + k): byte for k, byte in enumerate(others)}
