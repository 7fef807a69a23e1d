"""The special tokens that a tokenizer puts around every text."""

from transformers import PreTrainedTokenizerFast


def put_around(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer's post-processor puts before and behind every text."""
    backend = tokenizer.backend_tokenizer
    probe = "a"
    bare = backend.encode(probe, add_special_tokens=False).ids
    whole = backend.encode(probe, add_special_tokens=True).ids
    at = next(start for start in range(len(whole)) if whole[start : start + len(bare)] == bare)
    return whole[:at], whole[at + len(bare) :]
