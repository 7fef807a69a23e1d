"""What a tokenizer does to a text besides turning it into tokens: special tokens in it and around it, padding."""

from tokenizers import Tokenizer, models

_UNKNOWN = "\ue000\U0010fffd"
"""characters for private use, of which a vocabulary without bytes makes its unknown token"""


def special_tokens_around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer's post-processor puts before and after every text."""
    backend = plain_backend(tokenizer)
    probe = "a"
    bare = backend.encode(probe, add_special_tokens=False).ids
    framed = backend.encode(probe, add_special_tokens=True).ids
    start = next(start for start in range(len(framed)) if framed[start : start + len(bare)] == bare)
    return framed[:start], framed[start + len(bare) :]


def plain_backend(backend: Tokenizer) -> Tokenizer:
    """Return the backend without the truncation, padding and dropout saved with it: itself, or else a copy."""
    dropout = backend.model.dropout if isinstance(backend.model, models.BPE) else None
    if backend.truncation is None and backend.padding is None and dropout is None:
        return backend
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    if isinstance(copy.model, models.BPE):
        copy.model.dropout = None
    return copy


def spells_special_tokens(tokenizer: Tokenizer) -> bool:
    """Return whether the literal of a special token, read as text, gives a special token all the same.

    The tokenizer then has it among the pieces of its model, as those of type Unigram have `<s>` and `</s>`.
    """
    special = {id_: token.content for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    is_text = tokenizer.encode_special_tokens
    tokenizer.encode_special_tokens = True
    try:
        rows = tokenizer.encode_batch_fast([*special.values(), _UNKNOWN], add_special_tokens=False)
    finally:
        tokenizer.encode_special_tokens = is_text
    unknown = set(rows[-1].ids)
    return any(id_ in row.ids and id_ not in unknown for id_, row in zip(special, rows[:-1], strict=True))
