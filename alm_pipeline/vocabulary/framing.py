"""The special tokens that a tokenizer puts around every text."""

from transformers import PreTrainedTokenizerFast


def special_tokens_around(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer's post-processor puts before and after every text."""
    backend = tokenizer.backend_tokenizer
    probe = "a"
    bare = backend.encode(probe, add_special_tokens=False).ids
    framed = backend.encode(probe, add_special_tokens=True).ids
    start = next(start for start in range(len(framed)) if framed[start : start + len(bare)] == bare)
    return framed[:start], framed[start + len(bare) :]
