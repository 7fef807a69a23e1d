"""Byteification: the bytes that each token of a vocabulary stands for, derived from the tokenizer itself.

Ids and segmentation do not change. The tokenizer's model and decoder determine what a token spells; there is no table
of model names:

- byte-level: each character of the token is one byte, in GPT-2's alphabet;
- SentencePiece style, BPE or Unigram: a stand-in (U+2581) means a space, and with byte fallback `<0xNN>` means that
  byte;
- WordPiece, and BPE with an end-of-word mark: the marks (`##`, `</w>`) are not text, and no token covers the white
  space between words;
- without a decoder, or with one that only joins: a token is its own text.

Any other decoder is refused. This is a claim about the vocabulary only: `tokenization.encoder` compares the tokens of
every example with its text.
"""

import json
import re
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from storage.errors import UserError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# decoder steps that join tokens, or change only the edges of the joined text
_JOINING = ("Fuse", "ByteFallback", "Strip", "WordPiece", "BPEDecoder")
# normalizers and pre-tokenizers that remove white space
_DROPS_SPACE = ("Strip", "BertPreTokenizer", "Whitespace", "WhitespaceSplit", "CharDelimiterSplit")


class AbsorbedSpace(NamedTuple):
    """Whether an added token also covers the white space before and after its literal."""

    before: bool
    after: bool


@dataclass(frozen=True)
class ByteView:
    """The vocabulary in bytes. V is the highest id + 1; an id without a token has an empty spelling."""

    spelling: tuple[bytes, ...]
    """V entries: the text of each token; for a special token its literal"""
    lengths: npt.NDArray[np.int32]
    """[V] length of each spelling in bytes"""
    special: npt.NDArray[np.bool_]
    """[V] whether the token is special: a special token covers no byte of a message's content"""
    starts_word: npt.NDArray[np.bool_]
    """[V] whether the token begins with a space, tab or newline, or follows white space that no token covers"""
    fallback: npt.NDArray[np.bool_]
    """[V] whether the token is a byte fallback (`<0x41>`), which is never used if there is a token `A`"""
    arrow: pa.LargeBinaryArray
    """the spellings again, for lookups by arrays of ids"""
    unknown: int | None
    """the id for text that the vocabulary can't spell"""
    space: str | None
    """the character that stands for a space in the vocabulary, so that the tokens can't spell the character itself"""
    drops_space: bool
    """whether no token covers the white space between words or at the edges of a text"""
    added: dict[int, AbsorbedSpace]
    """added tokens, including the special ones, by id: their literals are cut out of a text before all other steps"""

    @cached_property
    def letters(self) -> npt.NDArray[np.uint8]:
        """All spellings, concatenated."""
        return np.frombuffer(self.arrow.buffers()[2] or b"", np.uint8)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """[V + 1] where each spelling begins in `letters`."""
        return np.frombuffer(self.arrow.buffers()[1], np.int64)[: self.size + 1]

    @property
    def size(self) -> int:
        return len(self.spelling)

    def within(self, rows: int) -> "ByteView":
        """Return the view without the tokens whose id is `rows` or higher, which a model can't read."""
        if self.size <= rows:
            return self
        spelling = (*self.spelling[:rows], *[b""] * (self.size - rows))
        lengths = np.array([len(text) for text in spelling], dtype=np.int32)
        return replace(self, spelling=spelling, lengths=lengths, arrow=pa.array(spelling, pa.large_binary()))

    def boundary(self, size: int) -> npt.NDArray[np.bool_]:
        """Return the mask [size] of the boundary tokens: those that start a word, and the special ones.

        `size` is the model's number of output rows. Rows beyond the tokenizer's highest id are not boundary tokens.
        """
        mask = np.zeros(size, dtype=bool)
        mask[: self.size] = self.starts_word | self.special
        return mask

    def spell(self, ids: npt.NDArray[np.int32]) -> bytes:
        """Return the bytes of the tokens, concatenated."""
        spellings = self.arrow.take(pa.array(ids))
        if not len(spellings):
            return b""
        offsets = np.frombuffer(spellings.buffers()[1], np.int64)
        start, end = offsets[[spellings.offset, spellings.offset + len(spellings)]]
        return bytes(spellings.buffers()[2][start:end])


def byte_view(tokenizer: Tokenizer) -> ByteView:
    """Return the bytes of every token of a fast tokenizer.

    Raises UserError if the tokenizer's decoder belongs to none of the known families.
    """
    model = _settings(tokenizer.model)
    style = _Style.of(tokenizer, model)
    added = tokenizer.get_added_tokens_decoder()
    vocabulary = {id_: token for token, id_ in tokenizer.get_vocab(with_added_tokens=False).items()}
    size = max([*vocabulary, *added], default=-1) + 1
    spelling = tuple(
        style.spell_added(added[id_]) if id_ in added else style.spell(vocabulary.get(id_, "")) for id_ in range(size)
    )
    literals = [added[id_].content if id_ in added else vocabulary.get(id_, "") for id_ in range(size)]
    starts = [
        text[:1] in (b" ", b"\t", b"\n") or (id_ in vocabulary and style.starts_word(vocabulary[id_]))
        for id_, text in enumerate(spelling)
    ]
    return ByteView(
        spelling=spelling,
        lengths=np.array([len(text) for text in spelling], dtype=np.int32),
        special=np.array([id_ in added and added[id_].special for id_ in range(size)], dtype=bool),
        starts_word=np.array(starts, dtype=bool),
        fallback=np.array(
            [len(text) == 1 and bool(_BYTE_TOKEN.fullmatch(literals[id_])) for id_, text in enumerate(spelling)],
            dtype=bool,
        ),
        arrow=pa.array(spelling, pa.large_binary()),
        unknown=_unknown(tokenizer, model),
        space=style.space,
        drops_space=style.drops_space,
        added={id_: AbsorbedSpace(token.lstrip, token.rstrip) for id_, token in added.items()},
    )


def tokens_by_spelling(view: ByteView, among: npt.NDArray[np.bool_] | None = None) -> dict[bytes, int]:
    """Return the id of each spelling. Special tokens are left out.

    If several tokens have the same spelling, the lowest id is taken, and a byte fallback only if there is no other.
    `among` [V] is a mask of the tokens to choose from, by default all.
    """
    ids = np.flatnonzero(~view.special & (view.lengths > 0) & (True if among is None else among))
    ids = ids[np.argsort(view.fallback[ids], kind="stable")]
    return {view.spelling[id_]: id_ for id_ in ids[::-1].tolist()}


def check_vocabulary(view: ByteView, embedding_rows: int, model: str) -> None:
    """Raise UserError if many ordinary tokens have no row in the model's embedding.

    Special tokens, and ordinary ones in a thousand, may lack a row: Gemma 3 1B's tokenizer is that of the models that
    also read images. The model can't read them, which costs only the examples that need one.
    """
    lacking = embedding_rows + np.flatnonzero((~view.special & (view.lengths > 0))[embedding_rows:])
    if len(lacking) > view.size // 1000:
        names = ", ".join(f"{id_} {view.spelling[id_].decode(errors='replace')!r}" for id_ in lacking[:3].tolist())
        raise UserError(
            f"{model}: the tokenizer's highest id is {view.size - 1}, the model's embedding has {embedding_rows} rows: "
            f"{len(lacking):,} of its ordinary tokens have none ({names}{', …' if len(lacking) > 3 else ''}): this is "
            "not the model's tokenizer, or the model was saved without its resized embedding: put the model's own "
            "tokenizer beside it, or call resize_token_embeddings and save it again"
        )


def _settings(model: models.Model) -> dict[str, Any]:
    """Return the model's settings without its vocabulary, which takes seconds to serialize except for Unigram."""
    if isinstance(model, models.Unigram):
        settings: dict[str, Any] = json.loads(model.__getstate__())
        return settings
    names = ("unk_token", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    return {"type": type(model).__name__, **{name: getattr(model, name, None) for name in names}}


def component(part: Any) -> dict[str, Any] | None:
    """Return a tokenizer's normalizer, pre-tokenizer or decoder as in its tokenizer.json."""
    return None if part is None else json.loads(part.__getstate__())


def steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the steps of a tokenizer component (normalizer, pre-tokenizer, decoder) as a flat list."""
    if part is None:
        return []
    nested = part.get("decoders") or part.get("pretokenizers") or part.get("normalizers")
    if nested is None:
        return [] if part["type"] == "Sequence" else [part]
    return [step for child in nested for step in steps(child)]


@dataclass(frozen=True)
class _Style:
    """How a vocabulary writes text."""

    byte_level: bool
    space: str | None
    byte_fallback: bool
    prefix: str
    """begins a token that continues a word: `##`"""
    suffix: str
    """ends a token that ends a word: `</w>`"""
    drops_space: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer, model: dict[str, Any]) -> "_Style":
        decoder = steps(component(tokenizer.decoder))
        space = next(filter(None, map(stand_in, decoder)), None)
        byte_level = any(step["type"] == "ByteLevel" for step in decoder)
        _check_decoder([step for step in decoder if not stand_in(step) and step["type"] != "ByteLevel"])
        word_piece, suffix = model["type"] == "WordPiece", model.get("end_of_word_suffix") or ""
        cutters = [*steps(component(tokenizer.normalizer)), *steps(component(tokenizer.pre_tokenizer))]
        drops = word_piece or bool(suffix) or any(map(_drops_space, cutters))
        prefix = model["continuing_subword_prefix"] if word_piece else ""
        fallback = bool(model.get("byte_fallback")) or any(step["type"] == "ByteFallback" for step in decoder)
        return cls(byte_level, space, fallback, prefix, suffix, drops)

    def spell(self, token: str) -> bytes:
        token = token.removeprefix(self.prefix).removesuffix(self.suffix)
        return _spell_byte_level(token) if self.byte_level else self._spell_characters(token)

    def _spell_characters(self, token: str) -> bytes:
        if self.byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return (token.replace(self.space, " ") if self.space else token).encode()

    def spell_added(self, token: AddedToken) -> bytes:
        # Gemma's runs of spaces are added tokens, spelled with U+2581 as in the vocabulary
        if not self.byte_level and not token.special:
            return self._spell_characters(token.content)
        return token.content.encode()

    def starts_word(self, token: str) -> bool:
        return bool(self.prefix) and not token.startswith(self.prefix)


def stand_in(step: dict[str, Any]) -> str | None:
    """Return the character that a decoder step turns into a space, or None for any other step."""
    if step["type"] == "Metaspace":
        return str(step["replacement"])
    if step["type"] == "Replace" and step["content"] == " " and len(step["pattern"].get("String", "")) == 1:
        return str(step["pattern"]["String"])
    return None


def _drops_space(step: dict[str, Any]) -> bool:
    return step["type"] in _DROPS_SPACE or step.get("behavior") == "Removed"


def _check_decoder(others: list[dict[str, Any]]) -> None:
    unknown = [step["type"] for step in others if step["type"] not in _JOINING]
    if unknown:
        raise UserError(
            f"the tokenizer's decoder has the step {', '.join(unknown)}, which is neither byte-level nor SentencePiece "
            "style nor WordPiece, so the bytes of its tokens are not known exactly: use another tokenizer"
        )


def _unknown(tokenizer: Tokenizer, model: dict[str, Any]) -> int | None:
    if model["type"] == "Unigram":
        return model["unk_id"]  # type: ignore[no-any-return]
    token = model.get("unk_token")
    return None if token is None else tokenizer.token_to_id(token)


def _spell_byte_level(token: str) -> bytes:
    letters, bytes_of_letters = _byte_alphabet()
    # str.translate, since a whole vocabulary is spelled each time a tokenizer is loaded
    return token.translate(bytes_of_letters).encode("latin-1") if letters.issuperset(token) else token.encode()


@cache
def _byte_alphabet() -> tuple[frozenset[str], dict[int, int]]:
    vocabulary = byte_vocabulary()
    return frozenset(vocabulary), {ord(letter): byte for letter, byte in vocabulary.items()}


@cache
def byte_vocabulary() -> dict[str, int]:
    """Return the byte of each letter of GPT-2's alphabet.

    Printable Latin-1 characters stand for themselves; the letters of the other bytes follow from U+0100 on.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [ord(letter) for letter in letters if ord(letter) < 256]
    others = [byte for byte in range(256) if byte not in printable]
    return dict(zip(letters, [*printable, *others], strict=True))
