"""Pairs the tokens that two vocabularies share, so that their models' distributions can be combined.

Ordinary tokens are the same if they spell the same bytes, special tokens if they have the same literal or role. The
pairing is one to one, so that no token's probability counts twice. If a vocabulary has several tokens of the same bytes
(SentencePiece's `a` and its byte `<0x61>`), tokens of the same literal are paired first, and byte tokens last.

Shapes: V ids of the lead's vocabulary.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from alm_pipeline.transfer.fvt import role_counterparts, special_counterparts
from alm_pipeline.vocabulary.byte_view import ByteView, byte_view, tokens_by_spelling
from storage.errors import UserError

Longs = npt.NDArray[np.int64]


def same_vocabulary(lead: PreTrainedTokenizerFast, member: PreTrainedTokenizerFast) -> bool:
    """Whether ids mean the same to both, so that one's ids can be passed to the other."""
    return lead.get_vocab() == member.get_vocab()


def existing_ids(tokenizer: PreTrainedTokenizerFast) -> Longs:
    """[V] each id itself, or −1 if the tokenizer has no such token."""
    ids = np.fromiter(tokenizer.get_vocab().values(), np.int64)
    ids_V = np.full(byte_view(tokenizer.backend_tokenizer).size, -1)
    ids_V[ids] = ids
    return ids_V


def counterparts(lead: PreTrainedTokenizerFast, member: PreTrainedTokenizerFast) -> Longs:
    """[V] the member's id of each of the lead's tokens, −1 if it has none; no id occurs twice."""
    sides = [_TokenizerSide(tokenizer) for tokenizer in (lead, member)]
    ids_V, paired = np.full(sides[0].view.size, -1), set[int]()
    for pairs in (_same_role(*sides), _same_literal(*sides), _same_bytes(*sides)):
        for lead_id, member_id in pairs:
            if ids_V[lead_id] < 0 and member_id not in paired:
                ids_V[lead_id] = member_id
                paired.add(member_id)
    return ids_V


class _TokenizerSide:
    """A tokenizer with the lookup tables that the pairing needs."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer, self.view = tokenizer, byte_view(tokenizer.backend_tokenizer)
        self.ids: dict[str, int] = tokenizer.get_vocab()

    def ordinary(self) -> Iterator[tuple[str, int]]:
        """Yield the tokens that are not special, in the order of their ids, with byte tokens last."""
        plain = [(token, id_) for token, id_ in self.ids.items() if not self.view.special[id_]]
        yield from sorted(plain, key=lambda pair: (bool(self.view.fallback[pair[1]]), pair[1]))


def _same_role(lead: _TokenizerSide, member: _TokenizerSide) -> Iterable[tuple[int, int]]:
    """Pair special tokens: first by their roles in the tokenizers, then by their roles in the chat templates."""
    sides = member.tokenizer, lead.tokenizer
    pairs = [*role_counterparts(*sides).items(), *special_counterparts(*sides).items()]
    return [pair for pair in pairs if lead.view.special[pair[0]] and member.view.special[pair[1]]]


def _same_literal(lead: _TokenizerSide, member: _TokenizerSide) -> Iterator[tuple[int, int]]:
    """Pair ordinary tokens of the same literal that also spell the same bytes."""
    for token, lead_id in lead.ordinary():
        member_id = member.ids.get(token)
        if member_id is None or member.view.special[member_id]:
            continue
        if lead.view.spelling[lead_id] == member.view.spelling[member_id]:
            yield lead_id, member_id


def _same_bytes(lead: _TokenizerSide, member: _TokenizerSide) -> Iterator[tuple[int, int]]:
    member_ids = {member.view.spelling[id_]: id_ for _, id_ in reversed(list(member.ordinary()))}
    for _, lead_id in lead.ordinary():
        if (spelling := lead.view.spelling[lead_id]) and spelling in member_ids:
            yield lead_id, member_ids[spelling]


class Respeller:
    """Spells the lead's tokens with tokens that all members have, so that all members can read a text's ids."""

    def __init__(self, view: ByteView, readable: npt.NDArray[np.bool_]) -> None:
        """`readable` [V] is whether all members have each of the lead's ids."""
        self._view, self._readable = view, readable
        self._ids = tokens_by_spelling(view, readable)
        self._longest = max(map(len, self._ids), default=0)
        self._pieces: dict[int, list[int]] = {}

    def respell(self, ids: Iterable[int]) -> list[int]:
        """Return readable tokens of the same bytes.

        Raises UserError for a token that cannot be spelled: a special token, or bytes that a member has no token for.
        """
        respelled: list[int] = []
        for id_ in ids:
            if id_ not in self._pieces:
                self._pieces[id_] = [id_] if self._readable[id_] else self._cut(id_)
            respelled += self._pieces[id_]
        return respelled

    def _cut(self, id_: int) -> list[int]:
        """Return the fewest readable tokens of the same bytes; of equally few, those with the longest first token."""
        spelling = self._view.spelling[id_]
        if self._view.special[id_]:
            raise UserError(
                f"the special token {spelling.decode()!r} does not have a counterpart in every member: leave it out of "
                "the text, or use `vocabulary: mined` in the ensemble, where members read it as text"
            )
        best: list[list[int] | None] = [None] * len(spelling) + [[]]
        for start in reversed(range(len(spelling))):
            ends = range(min(len(spelling), start + self._longest), start, -1)
            tails = [(self._ids.get(spelling[start:end]), best[end]) for end in ends]
            cuts = [[first, *rest] for first, rest in tails if first is not None and rest is not None]
            best[start] = min(cuts, key=len, default=None)
        if not spelling or best[0] is None:
            raise UserError(
                f"token {id_}, {spelling!r}, cannot be spelled with the tokens that all members have: leave it out of "
                "the text, or use `vocabulary: mined` in the ensemble"
            )
        return best[0]
