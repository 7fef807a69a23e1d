"""The standard engine encodes stretches of a text as the whole text."""

from transformers import PreTrainedTokenizerFast

from alm_pipeline.tokenization.engines.standard import StandardEngine


def test_stretches_are_encoded_as_inside_a_text(sentencepiece: PreTrainedTokenizerFast) -> None:
    standard = StandardEngine(sentencepiece.backend_tokenizer)
    bos = sentencepiece.convert_tokens_to_ids("<bos>")
    whole = standard.encode(["The fox<bos>  jumps<bos>"], special_literals=True).lists()[0]
    first, second, last = standard.encode_stretches(["The fox", "  jumps", ""])
    assert [*first, bos, *second, bos, *last] == whole
