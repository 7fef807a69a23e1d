"""Encodes the text that one tokenizer's ids spell with another tokenizer."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

from alm_pipeline.ensemble.vocabulary import counterparts
from alm_pipeline.vocabulary.byte_view import byte_view, tokens_by_spelling
from alm_pipeline.vocabulary.framing import plain_backend, special_tokens_around

_LONGEST_CHARACTER = 4


class Retokenizer:
    """Converts ids of the lead to ids of a member.

    A special token becomes the member's token of the same literal or role, or else the text of its literal. The ids
    begin with those that the member's tokenizer puts before every text. Bytes of an incomplete character become single
    bytes if the member has tokens for them, and are left out otherwise. Bytes that are not UTF-8 are left out, too.
    """

    def __init__(self, lead: PreTrainedTokenizerFast, member: PreTrainedTokenizerFast) -> None:
        self._view, self._backend = byte_view(lead.backend_tokenizer), plain_backend(member.backend_tokenizer)
        self._prefix, _ = special_tokens_around(member.backend_tokenizer)
        self._spelling = list(self._view.spelling)
        pairs = counterparts(lead, member)
        for special in np.flatnonzero(self._view.special & (pairs >= 0)).tolist():
            self._spelling[special] = str(member.convert_ids_to_tokens(int(pairs[special]))).encode()
        self._bytes = _byte_ids(member)
        self._dummy_space = _puts_a_space(lead)
        begin = next(id_ for id_ in (*self._prefix, member.bos_token_id, member.eos_token_id, 0) if id_ is not None)
        self._empty = (begin,)

    def __call__(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return the member's tokens; for an empty text, the one that begins a text."""
        text, rest = _split_incomplete(self._content(ids))
        member_ids = self._backend.encode(text, add_special_tokens=False).ids
        member_ids += [self._bytes[byte] for byte in rest] if all(byte in self._bytes for byte in rest) else []
        prefix = self._prefix if member_ids[: len(self._prefix)] != self._prefix else []
        return (*prefix, *member_ids) or self._empty

    def _content(self, ids: Sequence[int]) -> bytes:
        """Return the bytes that the ids spell, without the space that the lead's tokenizer puts before every text."""
        spellings = [self._spelling[id_] for id_ in ids]
        first = next((at for at, id_ in enumerate(ids) if not self._view.special[id_]), None)
        if first is not None and self._dummy_space:
            spellings[first] = spellings[first].removeprefix(b" ")
        return b"".join(spellings)


def _split_incomplete(content: bytes) -> tuple[str, bytes]:
    """Return the text, and the bytes at its end that begin an incomplete character."""
    for length in range(min(_LONGEST_CHARACTER, len(content)) + 1):
        try:
            return content[: len(content) - length].decode(), content[len(content) - length :]
        except UnicodeDecodeError:
            continue
    return content.decode(errors="ignore"), b""


def _byte_ids(tokenizer: PreTrainedTokenizerFast) -> dict[int, int]:
    """Return the token of each single byte."""
    tokens = tokens_by_spelling(byte_view(tokenizer.backend_tokenizer))
    return {spelling[0]: id_ for spelling, id_ in tokens.items() if len(spelling) == 1}


def _puts_a_space(tokenizer: PreTrainedTokenizerFast) -> bool:
    ids = plain_backend(tokenizer.backend_tokenizer).encode("a", add_special_tokens=False).ids
    return byte_view(tokenizer.backend_tokenizer).spell(np.array(ids, np.int32)) == b" a"
