"""The student: its model, its tokenizer, and how it gets a new tokenizer."""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from alm_pipeline.config.fields.places import FileOrName, FolderOrName, Place, PlaceUrl
from alm_pipeline.config.fields.repeated import place_of
from alm_pipeline.config.frozen import Frozen, Real
from alm_pipeline.config.template import TemplateConfig


class TrainedTokenizer(Frozen):
    """A byte-level BPE tokenizer trained on the corpus (on examples that are not held out)."""

    vocab_size: int = Field(16_384, ge=300, description="The number of tokens in the vocabulary.")
    train_bytes: int = Field(
        16 * 2**20,
        ge=1024,
        description="Bytes of text to train on, whatever the corpus's `sample` is. Default: 16 MiB.",
    )


Method = Literal["fvt", "mean", "random", "focus", "omp", "hypernetwork"]
Level = Literal["measured", "none"] | Annotated[Real, Field(ge=-20, le=20)]
"""How the level of new tokens is chosen: by measurement, not at all, or as a number of nats."""
SpecialTokens = Literal["auto", "source", "target"]
BYTES = "bytes"
"""The name of the byte-level tokenizer that is made from the student's own."""


def require_hypernetwork(method: Method, hypernetwork: str | None) -> None:
    """Raise ValueError if the method needs a hypernetwork and there is none, or the other way round."""
    if hypernetwork and method != "hypernetwork":
        raise ValueError(
            f"hypernetwork belongs to initialization hypernetwork, but initialization is {method}: change one of them"
        )
    if method == "hypernetwork" and not hypernetwork:
        raise ValueError(
            "initialization hypernetwork needs a trained one: name its folder as `hypernetwork` "
            "(`alm hypernet` trains one), or use fvt or focus"
        )


class StudentConfig(Frozen):
    """The student: a model with its own tokenizer, or one that gets a new tokenizer."""

    model: FolderOrName = Field(description="The model to train: a local folder, a name on the Hub, or `demo:NAME`.")
    tokenizer: Annotated[str, Place("folder", (BYTES,))] | TrainedTokenizer | None = Field(
        None,
        description="The new tokenizer of the model: a local folder, a name on the Hub, `bytes`, or the settings of "
        "a tokenizer to train on the corpus. `bytes` consists of the 256 bytes and the model's special tokens, with an "
        "output layer of its own; a folder of that name is written `./bytes`. Default: the model keeps its tokenizer.",
    )
    template: FileOrName | TemplateConfig | None = Field(
        None,
        description="The student's chat template: a file with a Jinja template, the name of a known one (`chatml`, "
        "`plain`), the name of one that its tokenizer has, such as `tool_use`, or a section with arguments. The saved "
        "student has it. Default: the tokenizer's own.",
    )
    initialization: Method = Field(
        "fvt",
        description="How embeddings of new tokens are made; those of tokens that both tokenizers have are copied. "
        "`fvt`: the mean of the embeddings of the old tokens that spell the new one. `mean`: the mean of all "
        "embeddings. `random`: drawn from the distribution of all embeddings. `focus`: a mixture of tokens with "
        "similar spellings. `omp`: the combination of shared tokens that approximates the new token in the donor's "
        "embeddings. `hypernetwork`: what a network that `alm hypernet` trained for this model predicts from the old "
        "tokens that spell the new one.",
    )
    hypernetwork: PlaceUrl | None = Field(
        None,
        min_length=1,
        description="With `hypernetwork`: the folder or URL of the hypernetwork, `…/hypernetworks/NAME`, which "
        "`alm hypernet` writes. It must have been trained for `model`.",
    )
    level: Level = Field(
        "measured",
        description="With a new tokenizer: how many nats the logits of all new tokens lose at first, since they would "
        "take too much probability from those that are copied. `measured`: the number for which their mean probability "
        "on training texts equals their share of the tokens. `none`: 0.",
    )
    donor: FolderOrName | None = Field(
        None,
        description="With `omp`: the model that the new tokenizer belongs to, as a local folder or a name on the Hub. "
        "Default: the model in the tokenizer's folder or repository.",
    )
    omp_terms: int = Field(8, ge=1, description="With `omp`: the number of shared tokens combined into each new one.")
    special_tokens: SpecialTokens = Field(
        "auto",
        description="With a new tokenizer: whose special tokens and chat template it gets. `source`: the model's. "
        "`target`: its own. `auto`: the model's if the tokenizer lacks a begin-of-text token or a chat template that "
        "the model has, otherwise its own.",
    )

    ngram_embeddings: bool = Field(
        False,
        description="With `tokenizer: bytes`: add to each byte the frozen embedding of the longest of the model's "
        "former tokens that ends there. The student's folder then contains a file of code.",
    )

    @field_validator("tokenizer")
    @classmethod
    def _as_the_model_is_spelled(
        cls, tokenizer: str | TrainedTokenizer | None, info: ValidationInfo
    ) -> str | TrainedTokenizer | None:
        """The model's own tokenizer is known by its name: `./folder/` is that of the model `folder`."""
        model = info.data.get("model")
        is_own = isinstance(tokenizer, str) and tokenizer != BYTES and model and place_of(tokenizer) == place_of(model)
        return model if is_own else tokenizer

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.donor and self.initialization != "omp":
            raise ValueError(
                f"donor belongs to initialization omp, but initialization is {self.initialization}: remove one of them"
            )
        require_hypernetwork(self.initialization, self.hypernetwork)
        if isinstance(self.tokenizer, TrainedTokenizer) or self.is_byte_level:
            if self.special_tokens == "target":
                raise ValueError("a tokenizer that is made here has the model's special tokens: remove special_tokens")
            if self.initialization == "omp" and not self.donor:
                raise ValueError(
                    "initialization omp needs a model that uses the new tokenizer, and no model uses one that is made "
                    "here: use focus"
                )
        if self.ngram_embeddings and not self.is_byte_level:
            raise ValueError(
                f"ngram_embeddings needs tokenizer `bytes`, but tokenizer is {self.tokenizer}: change one of them"
            )
        return self

    @property
    def template_name(self) -> str | None:
        """The file or name of a template; None for the tokenizer's own, with arguments or without."""
        return self.template.template if isinstance(self.template, TemplateConfig) else self.template

    @property
    def is_byte_level(self) -> bool:
        return self.tokenizer == BYTES
