"""Fast vocabulary transfer (FVT): composes the tokens of a new vocabulary from source tokens (Gee et al. 2022).

A special token gets the row of its counterpart. A token with the same bytes as a source token is copied. Any other
token is the mean of the pieces that the source tokenizer cuts its bytes into.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.tokenization.chat.template import ChatTemplate
from alm_pipeline.tokenization.engines.standard import StandardEngine
from alm_pipeline.transfer.composition import Composition, Fill
from alm_pipeline.vocabulary.byte_view import ByteView, tokens_by_spelling
from storage.errors import UserError
from storage.schemas import TokenKind

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
_CHAT_ROLES = (
    TokenKind.BEGIN_OF_TEXT,
    TokenKind.START_OF_TURN,
    TokenKind.END_OF_HEADER,
    TokenKind.END_OF_TURN,
    TokenKind.END_OF_TEXT,
)


@dataclass(frozen=True)
class VocabularyMap:
    """The source tokens that spell each of V target tokens."""

    pieces: tuple[tuple[int, ...], ...]
    """[V] the source tokens that spell it, or its counterpart; empty if there are none"""
    source: ByteView
    target: ByteView

    @property
    def copied(self) -> npt.NDArray[np.bool_]:
        """[V] whether one source token is the same: in bytes or, for special tokens, in literal or role."""
        return np.fromiter((len(ids) == 1 for ids in self.pieces), bool, len(self.pieces))

    def means(self) -> Composition:
        """FVT: the mean of the pieces, or a draw if there are none."""
        return Composition.of(
            self.pieces, [(1 / len(ids),) * len(ids) if ids else () for ids in self.pieces], self.copied
        )

    def copies(self, fill: Fill) -> Composition:
        """Tokens that are the same are copied, the others filled."""
        ids = [ids if len(ids) == 1 else () for ids in self.pieces]
        return Composition.of(ids, [(1.0,) * len(row) for row in ids], self.copied, fill)


def map_vocabulary(source: LoadedTokenizer, target: LoadedTokenizer) -> VocabularyMap:
    """Return the source pieces of every target id."""
    cutter = _Cutter(source)
    specials = special_counterparts(source.fast, target.fast)
    pieces = []
    for id_, spelling in enumerate(target.view.spelling):
        counterpart = (specials[id_],) if id_ in specials else ()
        pieces.append(counterpart if target.view.special[id_] else cutter.cut(spelling))
    return VocabularyMap(tuple(pieces), source.view, target.view)


class _Cutter:
    """Cuts bytes into source tokens as the source tokenizer does."""

    def __init__(self, source: LoadedTokenizer) -> None:
        # an engine sets how special literals are read, so it does not matter how the tokenizer was used before
        self.engine, self.view = StandardEngine(source.encoding_backend), source.view
        self.ids = tokens_by_spelling(self.view)
        self.longest = max(map(len, self.ids), default=0)

    def cut(self, spelling: bytes) -> tuple[int, ...]:
        if spelling in self.ids:
            return (self.ids[spelling],)
        try:
            (ids,) = self.engine.encode([spelling.decode()], special_literals=True)
        except UnicodeDecodeError:  # part of a character
            return self._longest_matches(spelling)
        spelled = b"".join(self.view.spelling[id_] for id_ in ids)
        return tuple(ids) if spelled == spelling else self._longest_matches(spelling)

    def _longest_matches(self, spelling: bytes) -> tuple[int, ...]:
        ids, start = [], 0
        while start < len(spelling):
            ends = range(min(len(spelling), start + self.longest), start, -1)
            end = next((end for end in ends if spelling[start:end] in self.ids), None)
            if end is None:
                return ()
            ids.append(self.ids[spelling[start:end]])
            start = end
        return tuple(ids)


def special_counterparts(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> dict[int, int]:
    """Return target id → source id of the same literal, or else the same role in the chat template or the tokenizer."""
    source_ids = chat_tokens(source)
    chat = [(id_, source_ids[kind]) for kind, id_ in chat_tokens(target).items() if kind in source_ids]
    return _first_pairs([*_same_literals(source, target), *chat, *_same_roles(source, target)])


def role_counterparts(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> dict[int, int]:
    """Return target id → source id of the same literal, or else the same role in the tokenizer; ignores templates."""
    return _first_pairs([*_same_literals(source, target), *_same_roles(source, target)])


def _same_literals(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> list[tuple[int, int]]:
    source_ids = source.get_vocab()
    return [(id_, source_ids[token]) for token, id_ in target.get_added_vocab().items() if token in source_ids]


def _same_roles(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> list[tuple[int, int]]:
    pairs = [(getattr(target, f"{role}_id"), getattr(source, f"{role}_id")) for role in ROLES]
    return [(target_id, source_id) for target_id, source_id in pairs if target_id is not None and source_id is not None]


def _first_pairs(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    first: dict[int, int] = {}
    for target_id, source_id in pairs:
        first.setdefault(target_id, source_id)
    return first


def chat_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[TokenKind, int]:
    """Return the special tokens with a role in the chat template, by role; roles with other text are left out."""
    try:
        rendering = ChatTemplate(tokenizer).render(
            [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
        )
    except UserError:  # no template, or one that does not accept this conversation
        return {}
    if rendering is None:
        return {}
    text, starts = rendering.text.encode(), [0, *rendering.ends[:-1].tolist()]
    added = tokenizer.get_added_vocab()
    tokens: dict[TokenKind, int] = {}
    for start, end, kind in zip(starts, rendering.ends.tolist(), rendering.kinds.tolist(), strict=True):
        literal = text[start:end].decode()
        if kind in _CHAT_ROLES and literal in added:
            tokens.setdefault(TokenKind(kind), added[literal])
    return tokens
