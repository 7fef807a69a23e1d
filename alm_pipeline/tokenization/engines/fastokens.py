"""`fastokens`: other code for the same tokenizers, which returns ids as arrays."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from alm_pipeline.tokenization.engines.flat_ids import FlatIds
from alm_pipeline.tokenization.engines.standard import StandardEngine
from alm_pipeline.vocabulary.byte_view import ByteView

_THREADS = "FASTOKENS_BPE_THREADS"
_DIGITS = {"type": "Digits", "individual_digits": True}


class FastokensEngine:
    """`fastokens`: two to fifty times as fast.

    A text that it can't encode (a byte that the vocabulary lacks) is encoded by the standard engine. Raises ValueError
    where it can't read the tokenizer, and ImportError where it is not installed.
    """

    name = "fastokens"

    def __init__(self, tokenizer: Tokenizer, view: ByteView, standard: StandardEngine) -> None:
        from fastokens import Tokenizer as Fastokens

        # it reads the variable once. Its own threads would compete with its callers, of which there is one per core
        os.environ.setdefault(_THREADS, "1")
        self._standard = standard
        settings, model = _halves(tokenizer)
        self._digits = _Digits.of(settings, tokenizer, view.size)
        with _panic_is_value_error("fastokens can't read the tokenizer"):
            self._tokenizer = Fastokens.from_json_str(_definition(settings, model, self._digits))

    def encode(self, texts: Sequence[str], *, special_literals: bool) -> FlatIds:
        return FlatIds.join(list(self._parts(list(texts), special_literals)))

    def _parts(self, texts: list[str], special_literals: bool) -> Iterator[FlatIds]:
        """Yield the ids of consecutive texts. An error does not name its text, which is found by halving."""
        try:
            with _panic_is_value_error("fastokens can't encode a text"):
                ids, offsets = self._tokenizer.encode_batch_flat(texts, False, not special_literals)
        except ValueError:
            if len(texts) == 1:
                yield self._standard.encode(texts, special_literals=special_literals)
                return
            yield from self._parts(texts[: len(texts) // 2], special_literals)
            yield from self._parts(texts[len(texts) // 2 :], special_literals)
            return
        # a copy can be written to, as other offsets: numba would compile its functions again for one that can't
        flat = FlatIds(np.frombuffer(ids, np.int32), np.frombuffer(offsets, np.int64).copy())
        yield self._digits.expanded(flat) if self._digits else flat


class _Digits(NamedTuple):
    """The digits of a tokenizer that splits them off one by one before GPT-2's pattern splits the rest.

    fastokens has fast code for that pattern alone. So it gets every digit as an added token, which it cuts out of a
    text first, as the tokenizer's first step does. A digit that is several tokens gets an id beyond the vocabulary.
    """

    added: list[dict[str, Any]]
    size: int
    """the vocabulary's"""
    pieces: FlatIds
    """the tokens of each digit that is several of them, in the order of their ids"""

    @classmethod
    def of(cls, settings: dict[str, Any], tokenizer: Tokenizer, size: int) -> "_Digits | None":
        """Return the digits of a tokenizer, or None for a tokenizer of another kind."""
        steps = (settings["pre_tokenizer"] or {}).get("pretokenizers", [])
        if settings["normalizer"] or len(steps) != 2 or steps[0] != _DIGITS or not _has_gpt2_pattern(steps[1]):
            return None
        digits = _individual_digits()
        taken = {token["content"] for token in settings["added_tokens"]}
        rows = [row.ids for row in tokenizer.encode_batch_fast(list(digits), add_special_tokens=False)]
        # no ids for a digit that the vocabulary can't spell: fastokens can't encode it either
        pairs = [(digit, ids) for digit, ids in zip(digits, rows, strict=True) if ids and digit not in taken]
        several = [ids for _, ids in pairs if len(ids) > 1]
        beyond = iter(range(size, size + len(several)))
        added = [_added_token(digit, ids[0] if len(ids) == 1 else next(beyond)) for digit, ids in pairs]
        return cls(added, size, FlatIds.of(several))

    def expanded(self, flat: FlatIds) -> FlatIds:
        """Return the ids with the tokens of each digit in the places of ids beyond the vocabulary."""
        beyond = np.flatnonzero(flat.ids >= self.size)
        if not len(beyond):
            return flat
        digits = flat.ids[beyond] - self.size
        counts = np.ones(len(flat.ids), np.int64)
        counts[beyond] = np.diff(self.pieces.offsets)[digits]
        ends = np.concatenate([[0], np.cumsum(counts)])
        ids = np.repeat(flat.ids, counts)
        for at, digit in zip(ends[beyond].tolist(), digits.tolist(), strict=True):
            pieces = self.pieces.row(digit)
            ids[at : at + len(pieces)] = pieces
        return FlatIds(ids, ends[flat.offsets])


def _has_gpt2_pattern(step: dict[str, Any]) -> bool:
    return step.get("type") == "ByteLevel" and step.get("use_regex") is True and step.get("add_prefix_space") is False


def _added_token(content: str, id_: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": id_, "content": content, **flags}


@cache
def _individual_digits() -> tuple[str, ...]:
    """Return all characters that `tokenizers` splits off as digits: its version of Unicode need not be Python's."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    # there are none in later planes; for long texts `tokenizers` takes a time that grows with the square
    blocks = ("".join(map(chr, range(at, at + 256))) for at in range(0, 0x20000, 256) if not 0xD800 <= at < 0xE000)
    # a piece of one character is a digit, or stands between two of them
    alone = [piece for block in blocks for piece, _ in digits.pre_tokenize_str(block) if len(piece) == 1]
    return tuple(piece for piece in alone if len(digits.pre_tokenize_str(f"ab{piece}")) == 2)


def _halves(tokenizer: Tokenizer) -> tuple[dict[str, Any], str]:
    """Return a tokenizer.json without its model, and the JSON of the model, which may have tens of megabytes."""
    state = tokenizer.to_str()
    # with its quotes, it can't be a part of a string
    at = state.index('"model":{')
    return json.loads(state[:at].rstrip(",") + "}"), state[at:]


def _definition(settings: dict[str, Any], model: str, digits: _Digits | None) -> str:
    """Return the tokenizer.json for fastokens, without steps that it need not take, and may not know."""
    own = settings | dict.fromkeys(("post_processor", "decoder", "truncation", "padding"))
    if digits:
        own["pre_tokenizer"] = own["pre_tokenizer"]["pretokenizers"][1]
        own["added_tokens"] = sorted([*own["added_tokens"], *digits.added], key=lambda token: token["id"])
    return f"{json.dumps(own)[:-1]},{model}"


@contextmanager
def _panic_is_value_error(subject: str) -> Iterator[None]:
    """Raise ValueError for any error of the library. The panics of Rust are not subclasses of Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise ValueError(f"{subject}: {error}") from error
