"""What a tokenizer does to a text besides turning it into tokens: special tokens around it, truncation, padding."""

from tokenizers import Tokenizer, models


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
