"""Which tokens of two vocabularies are the same, so that their models can speak of them together.

Ordinary tokens are the same where they stand for the same bytes, special ones where they have the same literal or
role. The pairing is one to one: no token's probability counts twice. Where a vocabulary has several tokens of the same
bytes (SentencePiece's `a` and its byte `<0x61>`), those of the same literal are paired first, then the ones that are no
byte tokens.

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
    """Whether ids mean the same to both, so that one's ids can be given to the other."""
    return lead.get_vocab() == member.get_vocab()


def existing(tokenizer: PreTrainedTokenizerFast) -> Longs:
    """[V] each id, −1 where the tokenizer has no such token."""
    ids = np.fromiter(tokenizer.get_vocab().values(), np.int64)
    found = np.full(byte_view(tokenizer.backend_tokenizer).size, -1)
    found[ids] = ids
    return found


def counterparts(lead: PreTrainedTokenizerFast, member: PreTrainedTokenizerFast) -> Longs:
    """[V] the member's id of each of the lead's tokens, −1 where it has none; no id occurs twice."""
    sides = [_Side(tokenizer) for tokenizer in (lead, member)]
    found, taken = np.full(sides[0].view.size, -1), set[int]()
    for pairs in (_same_role(*sides), _same_literal(*sides), _same_bytes(*sides)):
        for ours, theirs in pairs:
            if found[ours] < 0 and theirs not in taken:
                found[ours] = theirs
                taken.add(theirs)
    return found


class _Side:
    """A tokenizer with what the pairing asks of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer, self.view = tokenizer, byte_view(tokenizer.backend_tokenizer)
        self.ids: dict[str, int] = tokenizer.get_vocab()

    def ordinary(self) -> Iterator[tuple[str, int]]:
        """Tokens that are not special, byte tokens last, in the order of their ids."""
        plain = [(token, id_) for token, id_ in self.ids.items() if not self.view.special[id_]]
        yield from sorted(plain, key=lambda pair: (bool(self.view.fallback[pair[1]]), pair[1]))


def _same_role(lead: _Side, member: _Side) -> Iterable[tuple[int, int]]:
    """Begin and end of text go by the tokenizers' word, the rest by what chat templates do with them."""
    sides = member.tokenizer, lead.tokenizer
    pairs = [*role_counterparts(*sides).items(), *special_counterparts(*sides).items()]
    return [(ours, theirs) for ours, theirs in pairs if lead.view.special[ours] and member.view.special[theirs]]


def _same_literal(lead: _Side, member: _Side) -> Iterator[tuple[int, int]]:
    """Ordinary tokens of the same literal that also stand for the same bytes."""
    for token, ours in lead.ordinary():
        theirs = member.ids.get(token)
        if theirs is not None and not member.view.special[theirs] and _spells(lead, ours) == _spells(member, theirs):
            yield ours, theirs


def _same_bytes(lead: _Side, member: _Side) -> Iterator[tuple[int, int]]:
    theirs = {_spells(member, id_): id_ for _, id_ in reversed(list(member.ordinary()))}
    for _, ours in lead.ordinary():
        if (spelling := _spells(lead, ours)) and spelling in theirs:
            yield ours, theirs[spelling]


def _spells(side: _Side, id_: int) -> bytes:
    return side.view.spelling[id_]


class Respeller:
    """Spells the lead's tokens with those that all members have: a text's ids become ids that all can read."""

    def __init__(self, view: ByteView, readable: npt.NDArray[np.bool_]) -> None:
        """`readable` says of each of the lead's V ids whether all members have it."""
        self._view, self._readable = view, readable
        self._ids = tokens_by_spelling(view, readable)
        self._longest = max(map(len, self._ids), default=0)
        self._pieces: dict[int, list[int]] = {}

    def respell(self, ids: Iterable[int]) -> list[int]:
        """The same bytes in readable tokens.

        Raises UserError for a token that can't be spelled so: a special one, or bytes that a member has no token for.
        """
        respelled: list[int] = []
        for id_ in ids:
            if id_ not in self._pieces:
                self._pieces[id_] = [id_] if self._readable[id_] else self._cut(id_)
            respelled += self._pieces[id_]
        return respelled

    def _cut(self, id_: int) -> list[int]:
        """The fewest readable tokens of the same bytes, the longest first among equals."""
        spelling = self._view.spelling[id_]
        if self._view.special[id_]:
            raise UserError(
                f"the special token {spelling.decode()!r} has no counterpart in every member: leave it out of the "
                "text, or make the ensemble with `vocabulary: mined`, where members read it as text"
            )
        best: list[list[int] | None] = [None] * len(spelling) + [[]]
        for start in reversed(range(len(spelling))):
            ends = range(min(len(spelling), start + self._longest), start, -1)
            tails = [(self._ids.get(spelling[start:end]), best[end]) for end in ends]
            cuts = [[first, *rest] for first, rest in tails if first is not None and rest is not None]
            best[start] = min(cuts, key=len, default=None)
        if not spelling or best[0] is None:
            raise UserError(
                f"token {id_}, {spelling!r}, can't be spelled with the tokens that all members have: leave it out of "
                "the text, or make the ensemble with `vocabulary: mined`"
            )
        return best[0]
