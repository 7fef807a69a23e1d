"""`kitoken`: another implementation of the same tokenizers."""

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from alm_pipeline.runtime.threads import threads_at_once
from alm_pipeline.tokenization.engines.findings import Finding
from alm_pipeline.tokenization.engines.standard import StandardEngine
from alm_pipeline.vocabulary.byte_view import ByteView

# here and not where it is used: first imported in a thread that ends, kitoken 0.11.1 crashes (SIGSEGV) in later threads
with suppress(ImportError):
    import kitoken  # noqa: F401

_MOST_KITOKENS = 8
_MOST_MISREAD = 100
"""tokens: texts with one of them are looked for in every text"""


class KitokenEngine:
    """`kitoken`: other code for the same tokenizers, one and a half to five times as fast.

    It is known to read otherwise than `tokenizers`: special tokens' literals that are to be text, the literal of the
    unknown token, U+2581 in a text, and tokens that the merges never reach, which it takes for the words that they
    spell (Gemma 3 has some, such as ` yyyy`). Texts that hold them are left to the standard engine.
    Raises ValueError where it can't read the tokenizer, or reads many tokens otherwise; ImportError where it is not
    installed.
    """

    name = "kitoken"

    def __init__(self, tokenizer: Tokenizer, view: ByteView, standard: StandardEngine) -> None:
        import kitoken

        # threads that share one get in each other's way, and each takes as much memory as the tokenizer
        definition = tokenizer.to_str().encode()
        self._idle: SimpleQueue[Any] = SimpleQueue()
        try:
            for _ in range(min(threads_at_once(), _MOST_KITOKENS)):
                self._idle.put(kitoken.Kitoken.from_tokenizers(definition))
        # its panics are no Exceptions
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise ValueError(f"kitoken can't read the tokenizer: {error}") from error
        self._standard = standard
        always = [view.space or "", "" if view.unknown is None else view.spelling[view.unknown].decode()]
        special = [view.spelling[id_].decode() for id_ in np.flatnonzero(view.special).tolist()]
        about = Finding("tokens that kitoken reads otherwise", hashlib.sha256(definition).hexdigest())
        always += self._few((about.known() or about.keep({"tokens": self._misread(view)}))["tokens"])
        self._left_out = {True: _Contains(always), False: _Contains([*always, *special])}

    def _misread(self, view: ByteView) -> list[str]:
        """The tokens whose own text it reads otherwise."""
        ordinary = np.flatnonzero(~view.special).tolist()
        # of a part of a character what is whole in it: nothing, as a rule
        texts = list(dict.fromkeys(filter(None, (view.spelling[id_].decode(errors="ignore") for id_ in ordinary))))
        both = self._encode(texts, False), self._standard.encode(texts, special_literals=False)
        pairs = zip(texts, *both, strict=True)
        return [text for text, ours, theirs in pairs if ours != theirs]

    @staticmethod
    def _few(misread: list[str]) -> list[str]:
        if len(misread) > _MOST_MISREAD:
            raise ValueError(f"kitoken reads {len(misread)} tokens otherwise, {misread[0]!r} among them")
        return misread

    def encode(self, texts: Sequence[str], *, special_literals: bool) -> list[list[int]]:
        left_out = self._left_out[special_literals]
        other = [index for index, text in enumerate(texts) if left_out(text)]
        encoded = self._encode(texts, special_literals)
        for index, ids in zip(
            other, self._standard.encode([texts[i] for i in other], special_literals=special_literals), strict=True
        ):
            encoded[index] = ids
        return encoded

    def _encode(self, texts: Sequence[str], special_literals: bool) -> list[list[int]]:
        own = self._idle.get()
        try:
            encoded: list[list[int]] = own.encode_all(list(texts), special_literals)
            return encoded
        finally:
            self._idle.put(own)


class _Contains:
    """Whether a text holds any of these words, of which there may be thousands that begin alike."""

    def __init__(self, words: Iterable[str]) -> None:
        self._by_start: dict[str, list[str]] = {}
        for word in filter(None, words):
            self._by_start.setdefault(word[:2], []).append(word)

    def __call__(self, text: str) -> bool:
        return any(start in text and any(word in text for word in words) for start, words in self._by_start.items())
