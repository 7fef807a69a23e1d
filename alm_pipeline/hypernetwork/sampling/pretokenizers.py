"""The ways in which tokenizers split texts before they cut them into tokens.

The published sampler has only GPT-2's, in which punctuation never joins letters or newlines: it can't draw tokens such
as `(self` or `:\\n`, which Llama 3's and Qwen's tokenizers have by the hundred.
"""

from collections import Counter
from collections.abc import Iterable

import regex  # type: ignore[import-untyped]
from tokenizers import Regex, pre_tokenizers

from alm_pipeline.hypernetwork.sampling.settings import Pretokenizer

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_AFTER_DIGITS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

PATTERNS: dict[Pretokenizer, str] = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _AFTER_DIGITS,
    "digits": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _AFTER_DIGITS,
    "words": r" ?[^ ]+| +",
}
"""Each matches every character of any text."""


def count_words(texts: Iterable[str], pretokenizer: Pretokenizer) -> Counter[bytes]:
    """Return how often each word that the texts are split into occurs. The counts of parts of a corpus add up."""
    pattern, counts = regex.compile(PATTERNS[pretokenizer]), Counter[str]()
    for text in texts:
        counts.update(pattern.findall(text))
    return Counter({word.encode(): count for word, count in counts.items()})


def splitter(pretokenizer: Pretokenizer) -> pre_tokenizers.PreTokenizer:
    """Return the pretokenizer as `tokenizers` has it, with bytes as letters of GPT-2's alphabet."""
    split = pre_tokenizers.Split(Regex(PATTERNS[pretokenizer]), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
