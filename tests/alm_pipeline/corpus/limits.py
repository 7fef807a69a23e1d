"""Token limits by real tokenizers of several kinds, for the tests of cutting."""

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from alm_pipeline.corpus.token_cutting import TokenLimit
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.new_tokenizer.byte_level import byte_level_tokenizer
from alm_pipeline.tokenization.encoder import ByteEncoder
from tests import tiny


def metaspace() -> PreTrainedTokenizerFast:
    """As Llama 2's: a space in front of every text, byte fallback, special tokens around it."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *pieces], show_progress=False)
    tokenizer.train_from_iterator(tiny.TEXTS, trainer)
    tokenizer = tiny._with_plain_bytes(tokenizer, pieces)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s> </s>", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram() -> PreTrainedTokenizerFast:
    """As T5's or XLM-R's: SentencePiece Unigram; characters that it lacks are an unknown token."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(tiny.TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT's: no token covers white space, and what it can't spell is an unknown token."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[CLS]"], show_progress=False)
    tokenizer.train_from_iterator(tiny.TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def with_added_tokens() -> PreTrainedTokenizerFast:
    """Byte-level BPE with added tokens that texts contain; some absorb the white space beside them."""
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.add_tokens([AddedToken("word", normalized=False), AddedToken("    ", normalized=False)])
    tokenizer.add_tokens([AddedToken("the", lstrip=True, rstrip=True, normalized=False), AddedToken("\n\n\n")])
    return tokenizer


KINDS = {
    "byte_level": tiny.byte_level_tokenizer,
    "sentencepiece": tiny.sentencepiece_tokenizer,
    "bytes": lambda: byte_level_tokenizer(tiny.byte_level_tokenizer()),
    "metaspace": metaspace,
    "unigram": unigram,
    "word_piece": word_piece,
    "added_tokens": with_added_tokens,
}


@cache
def encoder(kind: str) -> ByteEncoder:
    return ByteEncoder(LoadedTokenizer.of(KINDS[kind]()))


def limit(kind: str, context: int) -> TokenLimit:
    return TokenLimit(context, encoder(kind))
