"""Builds the exact tokenizer from a gguf's metadata.

A gguf holds the vocabulary, the merges or scores, the types of the tokens and the name of a pre-tokenizer. The other
components are in llama.cpp's code; this module defines them for the two kinds of demo models.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

Metadata = Mapping[str, Any]

# gguf's token types
_CONTROL, _USER_DEFINED = 3, 4

# the control tokens of Gemma that decoding may skip; its thousands of other ones (<unused0>, <mask>) are text
_GEMMA_SPECIAL = frozenset(
    (
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<start_of_image>",
        "<end_of_image>",
    )
)


def build_tokenizer(metadata: Metadata) -> Tokenizer:
    """Return the tokenizer with the ids of the gguf. Raises KeyError for a kind that is not known exactly."""
    kind = metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]
    return {("gpt2", "smollm"): _build_smollm, ("llama", "default"): _build_gemma}[kind](metadata)


def tokenizer_config(metadata: Metadata) -> dict[str, Any]:
    """Return the content of tokenizer_config.json.

    The class that it names uses tokenizer.json unchanged; with a model type's own class, AutoTokenizer would rebuild
    the tokenizer.
    """
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    tokens = metadata["tokenizer.ggml.tokens"]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{role: tokens[metadata[f"tokenizer.ggml.{kind}_token_id"]] for role, kind in roles.items()},
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata[f"{metadata['general.architecture']}.context_length"],
    }
    template = metadata.get("tokenizer.chat_template")
    return config | ({"chat_template": template} if template else {})


def _build_smollm(metadata: Metadata) -> Tokenizer:
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    # for the name "smollm" llama.cpp separates digits, which transformers' gguf converter does not know
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_added_tokens(metadata, tokens))
    return tokenizer


def _added_tokens(metadata: Metadata, tokens: Iterable[str]) -> list[AddedToken]:
    typed = zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True)
    return [AddedToken(token, normalized=False) for token, kind in typed if kind in (_CONTROL, _USER_DEFINED)]


def _build_gemma(metadata: Metadata) -> Tokenizer:
    # a gguf writes Gemma's tokens of several spaces with spaces, the tokenizer itself with "▁▁"
    tokens = [token.replace(" ", "▁") for token in metadata["tokenizer.ggml.tokens"]]
    added = _added_tokens(metadata, tokens)
    tokenizer = Tokenizer(_sentencepiece_bpe(tokens, metadata["tokenizer.ggml.scores"], added))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", tokens.index("<bos>"))]
    )
    tokenizer.add_tokens(added)
    tokenizer.add_special_tokens([token for token in added if token.content in _GEMMA_SPECIAL])
    return tokenizer


def _sentencepiece_bpe(tokens: list[str], scores: list[float], added: list[AddedToken]) -> BPE:
    vocab = {token: index for index, token in enumerate(tokens)}
    # a gguf gives added tokens the score -1000, within the range of words; Gemma merges runs of spaces, newlines and
    # tabs before anything else
    score_of = dict(zip(tokens, scores, strict=True)) | {token.content: 0.0 for token in added}
    merges = sorted(
        _merges(vocab), key=lambda pair: (score_of["".join(pair)], len(pair[0]), len(pair[1])), reverse=True
    )
    return BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def _merges(vocab: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield every pair of tokens that spells a token; the pairs of one token are ordered by their two ids."""
    for token in vocab:
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [(left, right) for left, right in cuts if left in vocab and right in vocab]
        yield from sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
