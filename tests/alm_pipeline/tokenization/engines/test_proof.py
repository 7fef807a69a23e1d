"""The proof finds a text on which two engines differ."""

from transformers import PreTrainedTokenizerFast

from alm_pipeline.tokenization.engines.adversarial import ADVERSARIAL_TEXTS
from alm_pipeline.tokenization.engines.proof import first_difference
from alm_pipeline.tokenization.engines.standard import StandardEngine


def test_a_difference_is_found(byte_level: PreTrainedTokenizerFast) -> None:
    class OffByOne(StandardEngine):
        def encode(self, texts: list[str], *, special_literals: bool) -> list[list[int]]:  # type: ignore[override]
            rows = super().encode(texts, special_literals=special_literals)
            return [
                [*row[:-1], row[-1] + 1] if "\u0e20" in text else row for text, row in zip(texts, rows, strict=True)
            ]

    backend = byte_level.backend_tokenizer
    text = first_difference(OffByOne(backend), StandardEngine(backend), special_literals=False)
    assert text is not None
    assert "\u0e20" in text
    assert text == next(each for each in ADVERSARIAL_TEXTS if "\u0e20" in each)
