"""The settings of an edit: where its demonstrations come from, what is read of the model, what is made of that.

The three models are the configurations of the stages: another energy, centering, range of layers or method changes
`EditConfig` alone, and leaves the neutral answers and the activations as they are.
"""

import re
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from alm_pipeline.config import Dtype, Frozen
from storage.errors import UserError

EditMethod = Literal["sea", "mean_shift"]
Where = Literal["mlp", "writes", "residual"]
Nonlinearity = Literal["none", "squared_exponential", "tanh", "elu"]
Fold = Literal["auto", "always", "never"]
WHERE: tuple[Where, ...] = get_args(Where)

_LAST = re.compile(r"last:(\d+)(%?)")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


class DemonstrationsConfig(Frozen):
    """Where demonstrations come from: rows with a prompt, an answer to move to, and one to move away from."""

    url: str = Field(
        description="Local path or fsspec URL of Parquet, Arrow, JSON, CSV or TSV files with a demonstration per row."
    )
    prompt: str = Field("prompt", description="The column that holds the prompt.")
    positive: str = Field("positive", description="The column that holds the answer to move to, or a list of such.")
    negative: str = Field(
        "negative", description="The column that holds the answer to move away from, or a list of such."
    )
    neutral: str | None = Field(
        None, description="The column that holds the model's own answer. Default: the model is asked."
    )
    choices: str | None = Field(
        None,
        description="The column that holds a question's answers with their scores (`{answer: 1, other: 0}`), of which "
        "a pair is made: one with the highest score and one with a lower score, chosen by a hash of the row's id. "
        "Replaces `positive` and `negative`. Default: none.",
    )
    max_rows: int | None = Field(None, gt=0, description="The number of demonstrations to take. Default: all.")
    max_bytes: int = Field(
        2048,
        ge=16,
        description="The longest demonstration, in bytes of UTF-8: the prompt with its longest answer. Longer ones are "
        "left out and counted.",
    )
    shard_rows: int | None = Field(
        None,
        gt=0,
        description="Demonstrations per shard, the unit that is resumed after a kill. Default: 512, and more where "
        "there would be more than 16 shards.",
    )


class ActivationConfig(Frozen):
    """What is read of the model: its own answers, and activations at the last token of each text."""

    where: Where = Field(
        "mlp",
        description="What is read and edited. `mlp`: the output of each layer's MLP, before it is added to the "
        "residual stream. `writes`: the outputs of both attention and MLP. `residual`: the residual stream after each "
        "layer, which can't be folded into weights and is fragile where a few channels hold massive activations.",
    )
    chat: bool = Field(
        False, description="Whether prompts are a user's messages, in the model's own chat template, or plain texts."
    )
    neutral_tokens: int = Field(
        64, gt=0, description="The most new tokens of the model's own greedy answer to a prompt."
    )
    dtype: Dtype = Field("bfloat16", description="The dtype of the model's weights and of its forward pass.")
    batch_tokens: int = Field(4096, gt=0, description="Tokens per forward pass, including padding.")
    device: str | None = Field(None, description="Such as `cuda:1`. Default: the GPU, or else the CPU.")


class EditConfig(Frozen):
    """What is made of the activations."""

    method: EditMethod = Field(
        "sea",
        description="`sea`: spectral editing, one projection per layer (arXiv 2405.09719). `mean_shift`: adds "
        "`strength` times the difference between the mean activations of positive and negative answers.",
    )
    layers: str = Field(
        "last:33%",
        description="The layers to edit, counted from 0: `last:10`, `last:33%`, `20-29`, `4,8,12-15` or `all`.",
    )
    energy: float = Field(
        0.998,
        gt=0,
        le=1,
        description="With `sea`: the share of the squared singular values that each side's leading directions hold "
        "(ρ). The paper has 0.998 for truthfulness and 0.9999 for bias.",
    )
    center: bool = Field(
        True,
        description="With `sea`: whether the means over demonstrations are subtracted before covariances are taken. "
        "The paper does not.",
    )
    nonlinearity: Nonlinearity = Field(
        "none",
        description="With `sea`: the function Φ that activations pass before covariances and projections, and whose "
        "inverse follows each projection (Φ-SEA).",
    )
    swap: bool = Field(False, description="Whether positive and negative answers change places, as a control.")
    strength: float = Field(1.0, ge=-100, le=100, description="With `mean_shift`: the factor of the difference (α).")
    fold: Fold = Field(
        "auto",
        description="Whether the edit becomes part of the weights, so that the folder is an ordinary model. `auto`: "
        "where that is exact, or within the stated spread; otherwise a file of code comes with the folder, to load "
        "with `trust_remote_code`. `always`: refuse what can't be folded. `never`: always the file of code.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.method == "mean_shift" and self.nonlinearity != "none":
            raise ValueError("mean_shift adds a vector and has no nonlinearity: leave nonlinearity out")
        of_other = ("strength",) if self.method == "sea" else ("energy", "center")
        if unread := [name for name in of_other if getattr(self, name) != type(self).model_fields[name].default]:
            fix = f"leave {'them' if len(unread) > 1 else 'it'} out"
            raise ValueError(f"{self.method} has no {' and no '.join(unread)}: {fix}")
        if self.fold == "always" and self.nonlinearity != "none":
            raise ValueError("a nonlinearity can't be folded into weights: leave out fold: always")
        return self

    def identity(self) -> dict[str, object]:
        """Return what decides the projections: how they are folded does not, nor what the method does not read."""
        of_sea, of_shift = {"energy", "center", "nonlinearity"}, {"strength"}
        return self.model_dump(mode="json", exclude={"fold"} | (of_shift if self.method == "sea" else of_sea))


class EditEvaluationConfig(Frozen):
    """What the edited model is measured on, beside the model before the edit."""

    control: str | None = Field(
        None,
        description="URL of Parquet, Arrow, JSON, CSV or text files with texts that the edit should not change, to "
        "measure bits per byte on. Default: a sample of prose and code that comes with this project.",
    )
    control_text: str = Field("text", description="The column of the control texts, or a template of columns.")
    control_examples: int = Field(200, gt=0, description="The number of control texts to take.")
    contrasts: str | None = Field(
        None,
        description="URL of rows in the columns of the demonstrations, kept apart from them: the log-odds of their "
        "positive against their negative answers are measured. Default: none.",
    )
    tasks: tuple[str, ...] = Field((), description="Names of lm_eval tasks to run before and after the edit.")
    task_folder: str | None = Field(None, description="A folder with your own YAML tasks.")
    limit: int | None = Field(None, gt=0, description="The number of examples per task. Default: all.")

    @model_validator(mode="after")
    def _reads_all(self) -> Self:
        of_tasks = ("task_folder", "limit") if not self.tasks else ()
        of_control = ("control_text", "control_examples") if self.control is None else ()
        for name in (*of_tasks, *of_control):
            if getattr(self, name) != type(self).model_fields[name].default:
                other = "tasks" if name in of_tasks else "control"
                raise ValueError(f"{name} is not used without {other}: leave it out")
        return self


def layer_numbers(layers: str, count: int) -> list[int]:
    """Return the layers that a setting names, of a model with `count` layers. Raises UserError if it names no layer."""
    text = layers.replace(" ", "")
    if text == "all":
        return list(range(count))
    if last := _LAST.fullmatch(text):
        number = max(1, round(int(last[1]) * count / 100)) if last[2] else int(last[1])
        chosen = list(range(count - number, count))
    else:
        chosen = sorted({layer for part in text.split(",") for layer in _range(part, layers)})
    if not chosen or chosen[0] < 0 or chosen[-1] >= count:
        raise UserError(f"layers {layers}: the model has {count} layers, 0 to {count - 1}: name some of these")
    return chosen


def _range(part: str, layers: str) -> range:
    found = _RANGE.fullmatch(part)
    if not found:
        raise UserError(f"layers {layers}: is not a valid range: write last:10, last:33%, 20-29, 4,8,12-15 or all")
    return range(int(found[1]), int(found[2] or found[1]) + 1)
