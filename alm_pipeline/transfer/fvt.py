"""Fast vocabulary transfer (FVT): composes the tokens of a new vocabulary from source tokens (Gee et al. 2022).

A special token gets the row of its counterpart. A token with the same bytes as a source token is copied. Any other
token is the mean of the pieces that the source tokenizer cuts its bytes into.
"""

from collections.abc import Iterable, Sequence
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


def map_vocabulary(source: LoadedTokenizer, target: LoadedTokenizer, rows: int | None = None) -> VocabularyMap:
    """Return the source pieces of every target id: tokens with a row, of the `rows` of the source model's embedding."""
    rows = source.view.size if rows is None else rows
    cutter = PieceCutter(source, rows)
    pairs = special_counterparts(source.fast, target.fast)
    specials = {id_: source_id for id_, source_id in pairs.items() if source_id < rows}
    pieces = []
    for id_, spelling in enumerate(target.view.spelling):
        counterpart = (specials[id_],) if id_ in specials else ()
        is_added = id_ in target.view.added
        pieces.append(counterpart if target.view.special[id_] else cutter.cut(spelling, reads_literals=is_added))
    return VocabularyMap(tuple(pieces), source.view, target.view)


class PieceCutter:
    """Cuts bytes into source tokens as the source tokenizer does."""

    def __init__(self, source: LoadedTokenizer, rows: int) -> None:
        # an engine sets how special literals are read, so it does not matter how the tokenizer was used before
        self.engine, self.view = StandardEngine(source.encoding_backend), source.view
        self.rows, self.ids = rows, tokens_by_spelling(self.view, np.arange(self.view.size) < rows)
        self.longest = max(map(len, self.ids), default=0)
        self.with_role = ids_with_role(source.fast)

    def cut(self, spelling: bytes, *, reads_literals: bool) -> tuple[int, ...]:
        """Return the source tokens of a token that is not special.

        With `reads_literals`, the literals of the source's special tokens are those tokens. An ordinary token `<s>` is
        text, so it is not the source's begin of text. Nor is an added one, as Gemma's HTML tag `<s>`.
        """
        if spelling in self.ids:
            return (self.ids[spelling],)
        try:
            (ids,) = self.engine.encode([spelling.decode()], special_literals=reads_literals).lists()
        except UnicodeDecodeError:  # part of a character
            return self._longest_matches(spelling)
        return self._checked(spelling, ids, reads_literals=reads_literals)

    def cut_all(self, spellings: Sequence[bytes]) -> list[tuple[int, ...]]:
        """Return what `cut` does for each of many texts, in a tenth of the time."""
        texts = {spelling: text for spelling in spellings if spelling not in self.ids and (text := _decoded(spelling))}
        encoded = self.engine.encode(list(texts.values()), special_literals=False).lists()
        cuts = {
            spelling: self._checked(spelling, ids, reads_literals=False)
            for spelling, ids in zip(texts, encoded, strict=True)
        }
        return [
            cuts[spelling] if spelling in cuts else self.cut(spelling, reads_literals=False) for spelling in spellings
        ]

    def _checked(self, spelling: bytes, ids: Sequence[int], *, reads_literals: bool) -> tuple[int, ...]:
        """Return the tokens of a text's encoding, or others if they do not spell it or are not to be used."""
        if len(ids) == 1 and ids[0] in self.with_role:
            return self.cut(spelling, reads_literals=False) if reads_literals else self._longest_matches(spelling)
        spelled = b"".join(self.view.spelling[id_] for id_ in ids)
        has_rows = all(id_ < self.rows for id_ in ids)
        return tuple(ids) if spelled == spelling and has_rows else self._longest_matches(spelling)

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


def _decoded(spelling: bytes) -> str | None:
    try:
        return spelling.decode()
    except UnicodeDecodeError:
        return None


def special_counterparts(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> dict[int, int]:
    """Return target id → source id of the same literal, or else the same role in the chat template or the tokenizer.

    A token that is not special in the source is text there, whatever its literal: Qwen has ordinary tokens `<s>` and
    `</s>`. Only a target token without a role takes the source's added token of its literal that is not marked as
    special (`<think>`).
    """
    source_ids = chat_tokens(source)
    chat = [(id_, source_ids[kind]) for kind, id_ in chat_tokens(target).items() if kind in source_ids]
    roles = [*chat, *_same_roles(source, target)]
    return _first_pairs([*_same_literals(source, target), *roles, *_same_unmarked_literals(source, target)])


def role_counterparts(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> dict[int, int]:
    """Return target id → source id of the same literal, or else the same role in the tokenizer; ignores templates."""
    return _first_pairs([*_same_literals(source, target), *_same_roles(source, target)])


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the id of each special token by its literal."""
    return {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}


def _same_literals(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> list[tuple[int, int]]:
    source_ids = special_ids(source)
    return [(id_, source_ids[token]) for token, id_ in special_ids(target).items() if token in source_ids]


def _same_unmarked_literals(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> list[tuple[int, int]]:
    """Pair what has no role in the target with the source's added token of the same literal."""
    source_ids = source.get_added_vocab()
    with_role = ids_with_role(target)
    without_role = {token: id_ for token, id_ in special_ids(target).items() if id_ not in with_role}
    return [(id_, source_ids[token]) for token, id_ in without_role.items() if token in source_ids]


def ids_with_role(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Return the ids of the tokens that have a role in the tokenizer or in its chat template."""
    ids = [getattr(tokenizer, f"{role}_id") for role in ROLES]
    return {id_ for id_ in ids if id_ is not None} | set(chat_tokens(tokenizer).values())


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
