"""Tokenizers that split off digits one by one before GPT-2's pattern splits the rest, as SmolLM2's.

fastokens has fast code for that pattern alone. So it gets every digit as an added token, which it cuts out of a text
first, as the tokenizer's first step does. A digit that is several tokens gets an id beyond the vocabulary.
"""

from functools import cache
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from alm_pipeline.tokenization.engines.flat_ids import FlatIds
from alm_pipeline.tokenization.engines.rewriting import Expansion, Rewritten, definition

_DIGITS = {"type": "Digits", "individual_digits": True}


def split_digits_first(settings: dict[str, Any], model: str, tokenizer: Tokenizer, size: int) -> Rewritten | None:
    """Return the tokenizer with digits as added tokens, or None for a tokenizer of another kind.

    `model` is the JSON of its model, and `size` its highest id + 1.
    """
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
    own = {
        **settings,
        "pre_tokenizer": steps[1],
        "added_tokens": sorted([*settings["added_tokens"], *added], key=lambda token: token["id"]),
    }
    return Rewritten(definition(own, model), Expansion(size, FlatIds.of(several)))


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
