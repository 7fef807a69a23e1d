"""Fast vocabulary transfer (FVT): the source tokens that a new vocabulary is made of (Gee et al. 2022).

A special token takes its counterpart's row, a token of the same bytes is copied, any other is the mean of the
pieces that the source tokenizer cuts its bytes into.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from alm_pipeline.tokenization.chat.template import ChatTemplate
from alm_pipeline.tokenization.engines.standard import StandardEngine
from alm_pipeline.transfer.composition import Composition, Fill
from alm_pipeline.vocabulary.byte_view import ByteView, byte_view, tokens_by_spelling
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
    """What the source tokenizer knows of each of V target tokens."""

    pieces: tuple[tuple[int, ...], ...]
    """[V] the source tokens that spell it, or its counterpart; none where there is nothing"""
    source: ByteView
    target: ByteView

    @property
    def copied(self) -> npt.NDArray[np.bool_]:
        """[V] one source token is the same, in bytes or, of special tokens, in literal or role."""
        return np.fromiter((len(ids) == 1 for ids in self.pieces), bool, len(self.pieces))

    def means(self) -> Composition:
        """FVT: the mean of the pieces; a draw where there is none."""
        return Composition.of(
            self.pieces, [(1 / len(ids),) * len(ids) if ids else () for ids in self.pieces], self.copied
        )

    def copies(self, fill: Fill) -> Composition:
        """What is the same is copied, the rest filled."""
        ids = [ids if len(ids) == 1 else () for ids in self.pieces]
        return Composition.of(ids, [(1.0,) * len(own) for own in ids], self.copied, fill)


def map_vocabulary(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> VocabularyMap:
    """The source pieces of every target id."""
    source_view, target_view = byte_view(source.backend_tokenizer), byte_view(target.backend_tokenizer)
    cutter = _Cutter(source, source_view)
    specials = special_counterparts(source, target)
    pieces = []
    for id_, spelling in enumerate(target_view.spelling):
        special = target_view.special[id_]
        own = (specials[id_],) if id_ in specials else ()
        pieces.append(own if special else cutter.cut(spelling))
    return VocabularyMap(tuple(pieces), source_view, target_view)


class _Cutter:
    """Cuts bytes into source tokens as the source tokenizer would."""

    def __init__(self, source: PreTrainedTokenizerFast, view: ByteView) -> None:
        # an engine states how it reads special tokens' literals, whatever the tokenizer's last user left set
        self.engine, self.view = StandardEngine(source.backend_tokenizer), view
        self.ids = tokens_by_spelling(view)
        self.longest = max(map(len, self.ids), default=0)

    def cut(self, spelling: bytes) -> tuple[int, ...]:
        if spelling in self.ids:
            return (self.ids[spelling],)
        try:
            (ids,) = self.engine.encode([spelling.decode()], special_literals=True)
        except UnicodeDecodeError:  # a part of a character
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
    """Target id → source id: the same literal, otherwise the same role in the chat template, or in the tokenizer."""
    theirs = chat_tokens(source)
    chat = [(id_, theirs[kind]) for kind, id_ in chat_tokens(target).items() if kind in theirs]
    return _first_pairs([*_same_literals(source, target), *chat, *_same_roles(source, target)])


def role_counterparts(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> dict[int, int]:
    """Target id → source id: the same literal, otherwise the same role in the tokenizer, whatever chat templates do."""
    return _first_pairs([*_same_literals(source, target), *_same_roles(source, target)])


def _same_literals(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> list[tuple[int, int]]:
    known = source.get_vocab()
    return [(id_, known[token]) for token, id_ in target.get_added_vocab().items() if token in known]


def _same_roles(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> list[tuple[int, int]]:
    pairs = [(getattr(target, f"{role}_id"), getattr(source, f"{role}_id")) for role in ROLES]
    return [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]


def _first_pairs(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    found: dict[int, int] = {}
    for ours, theirs in pairs:
        found.setdefault(ours, theirs)
    return found


def chat_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[TokenKind, int]:
    """The special tokens with a role in the chat template, by role; a role that takes other text is left out."""
    try:
        rendering = ChatTemplate(tokenizer).render(
            [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
        )
    except UserError:  # no template, or one that takes no such conversation
        return {}
    if rendering is None:
        return {}
    text, starts = rendering.text.encode(), [0, *rendering.ends[:-1].tolist()]
    added = tokenizer.get_added_vocab()
    found: dict[TokenKind, int] = {}
    for start, end, kind in zip(starts, rendering.ends.tolist(), rendering.kinds.tolist(), strict=True):
        literal = text[start:end].decode()
        if kind in _CHAT_ROLES and literal in added:
            found.setdefault(TokenKind(kind), added[literal])
    return found
