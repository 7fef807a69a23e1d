"""The configuration of an ensemble: a YAML file, or a folder with an `ensemble.yaml`."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from alm_pipeline.config import Dtype, Frozen, TemplateConfig
from alm_pipeline.config.fields.errors import wrong_fields
from alm_pipeline.config.fields.repeated import place_of, refuse_repeated
from alm_pipeline.config.fields.unread import refuse_unread
from alm_pipeline.config.run import read_yaml
from storage.errors import UserError, naming

FILE = "ensemble.yaml"

Mean = Literal["probabilities", "logprobs"]
SharedTokens = Literal["shared", "mined"]


class MemberConfig(Frozen):
    """A member of an ensemble."""

    model: str = Field(
        description="A folder, a stored student's URL, a hub name, or `demo:NAME`. Names that begin with `./` or `../` "
        "are relative to the ensemble's file."
    )
    tokenizer: str | None = Field(
        None, description="The folder or hub name of the member's tokenizer. Default: the model's own."
    )
    hypernetwork: str | None = Field(
        None,
        description="With `tokenizer`: the folder or URL of a hypernetwork of the model, which gives it that tokenizer "
        "on the fly (`./…` relative to the ensemble's file). Default: the tokenizer has the model's own ids.",
    )
    template: str | TemplateConfig | None = Field(
        None,
        description="The chat template, which only the first member's prompts use: a file (`./…` relative to the "
        "ensemble's), the name of a known one or of one that the tokenizer has, or a section with arguments. Default: "
        "the tokenizer's own.",
    )
    weight: float = Field(1.0, ge=0, description="The member's share; 0 leaves its predictions out.")
    dtype: Dtype = Field("float32", description="The precision of the weights.")
    device: str | None = Field(
        None, description="The device, such as `cpu` or `cuda:1`. Default: the GPU, or the CPU if there is none."
    )
    trust_remote_code: bool = Field(False, description="Run the code in the model's folder.")

    @model_validator(mode="after")
    def _has_a_tokenizer(self) -> Self:
        if self.hypernetwork and not self.tokenizer:
            raise ValueError("hypernetwork: name the tokenizer that it is to give the model as `tokenizer`")
        return self


class EnsembleConfig(Frozen):
    """Members, and how their next-token distributions are combined. The first member leads: its tokenizer is used."""

    members: tuple[MemberConfig, ...] = Field(min_length=1, description="The members; the first one leads.")
    mean: Mean = Field(
        "probabilities",
        description="The mean of the members' distributions: of `probabilities`, or of `logprobs`, which is the "
        "renormalized geometric mean.",
    )
    vocabulary: SharedTokens = Field(
        "shared",
        description="`shared`: the tokens that all members have. `mined`: the tokens of the first member; each other "
        "member uses its most similar token for each.",
    )

    @model_validator(mode="after")
    def _someone_counts(self) -> Self:
        if not any(member.weight for member in self.members):
            raise ValueError("every weight is 0: give at least one member a weight above 0")
        weights = [member.weight for member in self.members if member.weight]
        if not all(weight / sum(weights) > 0 for weight in weights):
            raise ValueError(
                f"the weights {min(weights)} and {max(weights)} are too far apart to compute with: give weights "
                "such as 1 and 2, or 0 to leave a member out"
            )
        return self


def ensemble_file(name: str) -> Path | None:
    """Return the file if `name` is an ensemble's file or a folder with one, else None."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    return path / FILE if (path / FILE).is_file() else None


def ensemble_or_model(name: str) -> str:
    """Return the name of a model, or the file of an ensemble, which may be named by its folder."""
    return str(ensemble_file(name) or name)


def refuse_settings_of_ensembles(
    names: Sequence[str], *, dtype: str = "float32", device: str | None = None, trust_remote_code: bool = False
) -> None:
    """Raise UserError for settings that nothing reads, where only ensembles are named: their files have their own."""
    if all(map(ensemble_file, names)):
        given: dict[str, tuple[object, object]] = {"dtype": (dtype, "float32"), "device": (device, None)}
        given |= {"trust_remote_code": (trust_remote_code, False)}
        refuse_unread("an ensemble's file sets that for each member", **given)


def read_config(file: Path) -> EnsembleConfig:
    """Read a configuration, and make its members' relative names (`./…`, `../…`) paths.

    Raises UserError with the file and the fields that are wrong, or the member that is there twice.
    """
    try:
        config = EnsembleConfig.model_validate(read_yaml(file, "give it `members: [{model: …}, …]`"))
    except ValidationError as error:
        raise UserError(f"{file}: is not a valid ensemble:\n{wrong_fields(error, EnsembleConfig)}") from error
    members = tuple(member.model_copy(update=_relative_to(member, file.parent)) for member in config.members)
    with naming(str(file)):
        refuse_repeated_members(members)
    return config.model_copy(update={"members": members})


def refuse_repeated_members(members: Sequence[MemberConfig]) -> None:
    """Raise UserError if two members are the same model with the same tokenizer."""
    same = defaultdict[tuple[str | None, ...], list[str]](list)
    for member in members:
        names = (member.model, member.tokenizer or member.model, member.hypernetwork)
        same[tuple(name and place_of(name) for name in names)].append(member.model)
    for models in same.values():
        refuse_repeated(models, "member")


def _relative_to(member: MemberConfig, folder: Path) -> dict[str, Any]:
    texts = ("model", "tokenizer", "hypernetwork", "template")
    names = {name: getattr(member, name) for name in texts}
    paths: dict[str, Any] = {
        key: str(folder / name) for key, name in names.items() if isinstance(name, str) and _is_relative(name)
    }
    template = member.template
    if isinstance(template, TemplateConfig) and template.template and _is_relative(template.template):
        paths["template"] = template.model_copy(update={"template": str(folder / template.template)})
    return paths


def _is_relative(name: str) -> bool:
    return name.startswith(("./", "../"))


def write_config(config: EnsembleConfig, folder: Path) -> Path:
    """Write `ensemble.yaml` into the folder, and create that if needed. Raises UserError if the file exists."""
    file = folder / FILE
    if file.exists():
        raise UserError(f"{file}: exists already: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    return file
