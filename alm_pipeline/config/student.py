"""The student: its model, its tokenizer, and how a new tokenizer is put on it."""

from typing import Literal, Self

from pydantic import Field, model_validator

from alm_pipeline.config.frozen import Frozen


class TrainedTokenizer(Frozen):
    """A byte-level BPE tokenizer trained on the corpus (its examples that are not held out)."""

    vocab_size: int = Field(16_384, ge=300)
    train_bytes: int = Field(16 * 2**20, ge=1024, description="text to train on, whatever the corpus's `sample`")


Method = Literal["fvt", "mean", "random", "focus", "omp"]
SpecialTokens = Literal["auto", "source", "target"]
BYTES = "bytes"
"""the name of the byte-level tokenizer that is made of the student's own"""


class StudentConfig(Frozen):
    """The student: a model with its own tokenizer, or one that a new tokenizer is put on."""

    model: str = Field(description="a folder, a hub name, or demo:NAME")
    tokenizer: str | TrainedTokenizer | None = Field(
        None,
        description="None keeps the model's; a folder or hub name, or a tokenizer to train, is put on it; "
        "`bytes` is the 256 bytes and the model's special tokens, with a head of its own (a folder of that name: "
        "./bytes)",
    )
    initialization: Method = Field(
        "fvt",
        description="of a new tokenizer's embeddings, where they are not copied: fvt, the mean of the pieces; mean, of "
        "all; random, from the distribution of all; focus, by similar spellings; omp, as the donor sees it",
    )
    donor: str | None = Field(
        None, description="of omp: the model whose tokenizer it is; by default the model beside the tokenizer"
    )
    omp_terms: int = Field(8, ge=1, description="of omp: how many shared tokens make up a new one")
    special_tokens: SpecialTokens = Field(
        "auto",
        description="of a new tokenizer: source puts the model's own special tokens and chat template on it; auto does "
        "where the tokenizer lacks a begin-of-text token or a chat template that the model has",
    )

    ngram_embeddings: bool = Field(
        False,
        description="with tokenizer bytes: at each byte, the frozen embedding of the longest of the model's former "
        "tokens that ends there is added; the student's folder then carries a file of code",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.donor and self.initialization != "omp":
            raise ValueError(f"donor is of the initialization omp, and this is {self.initialization}: leave one out")
        if isinstance(self.tokenizer, TrainedTokenizer) or self.is_byte_level:
            if self.special_tokens == "target":
                raise ValueError(
                    "a tokenizer that is made here has the model's special tokens: leave special_tokens out"
                )
            if self.initialization == "omp" and not self.donor:
                raise ValueError("initialization omp: no model has a tokenizer yet that is made here: use focus")
        if self.ngram_embeddings and not self.is_byte_level:
            raise ValueError(
                f"ngram_embeddings is of the tokenizer `bytes`, and this is {self.tokenizer}: leave one out"
            )
        return self

    @property
    def is_byte_level(self) -> bool:
        return self.tokenizer == BYTES
