"""How tokenizers are drawn."""

from typing import Literal, Self

from pydantic import Field, model_validator

from alm_pipeline.config import Frozen
from alm_pipeline.config.frozen import Real

Pretokenizer = Literal["gpt2", "cl100k", "digits", "words"]


class SamplerConfig(Frozen):
    """How the tokenizers that a hypernetwork is trained on are drawn, a new one for each step."""

    min_tokens: int = Field(
        4096, ge=300, le=2**20, description="The fewest tokens of a drawn tokenizer, without the special ones."
    )
    max_tokens: int = Field(
        32_768,
        ge=300,
        le=2**20,
        description="The most; sizes between are drawn with an equal chance for each factor of two.",
    )
    pretokenizers: tuple[Pretokenizer, ...] = Field(
        ("gpt2", "cl100k", "digits", "words"),
        min_length=1,
        description="The ways in which texts are split before they are cut into tokens; each step draws one. `gpt2`: "
        "GPT-2's, where punctuation never joins letters. `cl100k`: that of GPT-4 and Llama 3 (`(self`, up to three "
        "digits). `digits`: that of Qwen, where each digit is a token. `words`: only before spaces, as SentencePiece "
        "does.",
    )
    noise: Real = Field(
        1e-5,
        ge=0,
        description="The median of the noise on each substring's share of the text, which differs by a factor of "
        "e⁴ from step to step; 0 draws the most frequent substrings always.",
    )
    longest: int = Field(16, ge=2, le=16, description="The most bytes of a token.")
    count_bytes: int = Field(
        16 * 2**20,
        ge=1024,
        description="Bytes of training text whose substrings are counted, from shards that are spread evenly. Default: "
        "16 MiB.",
    )
    candidates: int = Field(
        100_000, ge=300, description="The number of substrings that are kept for each way of splitting."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}: exchange them, or lower the first"
            )
        if len(set(self.pretokenizers)) < len(self.pretokenizers):
            raise ValueError("pretokenizers: one is there twice: remove it")
        return self
