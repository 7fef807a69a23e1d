"""SentencePiece's BPE with byte fallback (Gemma, Llama 2, Mistral), written as BPE of bytes.

Such a tokenizer merges characters, and spells a character that it lacks by tokens of single bytes. fastokens has fast
code for merges of bytes only. The same ids come out of merging bytes if the bytes of each known character are merged
first, before all other merges: no other character's bytes are merged by it, since UTF-8 tells where a character begins.
Of an unknown character, whose first bytes may be those of a known one, some bytes can be left merged. Such a piece gets
an id beyond the vocabulary, and stands for the tokens of its bytes.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from alm_pipeline.tokenization.engines.flat_ids import FlatIds
from alm_pipeline.tokenization.engines.rewriting import Expansion, Rewritten, definition
from alm_pipeline.vocabulary.byte_view import byte_vocabulary

_LETTERS = {byte: letter for letter, byte in byte_vocabulary().items()}
"""the letter that stands for each byte in a vocabulary of bytes"""
_BYTES = {f"<0x{byte:02X}>": _LETTERS[byte] for byte in range(256)}
"""the letters of the tokens of single bytes"""
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_PLAIN = {
    "dropout": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "ignore_merges": False,
    "byte_fallback": True,
}
"""settings of a model that merges characters alone"""


def join_bytes_first(settings: dict[str, Any], model: str, size: int) -> Rewritten | None:
    """Return the tokenizer as one of bytes, or None for a tokenizer of another kind.

    `model` is the JSON of its model, and `size` its highest id + 1.
    """
    if '"byte_fallback":true' not in model or _splits(settings):
        return None
    own = json.loads("{" + model)["model"]
    vocabulary: dict[str, int] = own["vocab"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in own["merges"]]
    if any((own.get(name) or None) != (value or None) for name, value in _PLAIN.items()) or own["type"] != "BPE":
        return None
    ids = {letter: vocabulary[token] for token, letter in _BYTES.items() if token in vocabulary}
    # a byte that is a character's own is spelled by that
    spelled = ids | {_spelled(token): id_ for token, id_ in vocabulary.items() if token not in _BYTES}
    if not spelled.keys() >= set(_LETTERS.values()) or any("".join(pair) in _BYTES for pair in merges):
        return None
    pieces: dict[str, int] = {}
    first = list(_character_merges(vocabulary, spelled, pieces, size))
    others = [(_spelled(left), _spelled(right)) for left, right in merges]
    changed = {"vocab": _without_gaps(spelled | pieces), "merges": first + others}
    model = json.dumps({**own, **changed, "byte_fallback": False, "fuse_unk": False, "unk_token": None})
    expansion = Expansion(size, FlatIds.of([[ids[letter] for letter in piece] for piece in pieces]))
    return Rewritten(definition({**settings, "pre_tokenizer": _BYTE_LEVEL}, f'"model":{model}}}'), expansion)


def _splits(settings: Mapping[str, Any]) -> bool:
    """Return whether a text is split before merges. Gemma's splits at a space, of which its normalizer leaves none."""
    step = settings["pre_tokenizer"]
    if step is None:
        return False
    at_space = step.get("type") == "Split" and step.get("pattern") == {"String": " "}
    normalizer = settings["normalizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    last = steps[-1] if steps else {}
    return not (at_space and last.get("pattern") == {"String": " "} and " " not in last.get("content", " "))


def _spelled(token: str) -> str:
    """Return the letters of a token's bytes."""
    return token.encode().decode("latin-1").translate(_LETTERS)


def _character_merges(
    vocabulary: Mapping[str, int], spelled: Mapping[str, int], pieces: dict[str, int], size: int
) -> Iterator[tuple[str, str]]:
    """Yield the merges that make each character of its bytes; adds to `pieces` what stands between the two."""
    seen = set[str]()
    for character in vocabulary:
        if len(character) != 1:
            continue
        spelling = _spelled(character)
        for end in range(2, len(spelling) + 1):
            piece = spelling[:end]
            if piece in seen:
                continue
            seen.add(piece)
            if piece not in spelled:
                pieces[piece] = size + len(pieces)
            yield piece[:-1], piece[-1]


def _without_gaps(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Return the vocabulary with a name that no text spells for each id without one: fastokens wants all of them."""
    used = set(vocabulary.values())
    # a merge never makes them: they are no product of one
    names = {f"{_LETTERS[0]}no text spells {id_}": id_ for id_ in range(max(used)) if id_ not in used}
    return {**vocabulary, **names}
