"""A byte-level BPE tokenizer trained on a corpus, with the source model's special tokens and chat template."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:  # importing it takes a second
    from transformers import PreTrainedTokenizerFast


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, source: "PreTrainedTokenizerFast"
) -> "PreTrainedTokenizerFast":
    """Train a tokenizer of at most `vocab_size` tokens, including the special ones. Every digit is a token.

    Special tokens keep their literals and roles, so that the source's chat template still works.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for _, token in sorted(source.added_tokens_decoder.items()) if token.special]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    roles = {role: token for role, token in source.special_tokens_map.items() if isinstance(token, str)}
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **roles)
    wrapped.chat_template = source.chat_template
    wrapped.model_max_length = source.model_max_length
    return wrapped
