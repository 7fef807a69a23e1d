"""What an ensemble is made of: a YAML file, alone or as `ensemble.yaml` in a folder of its own."""

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from alm_pipeline.config import Dtype, Frozen
from storage.errors import UserError

FILE = "ensemble.yaml"

Mean = Literal["probabilities", "logprobs"]
JointVocabulary = Literal["shared", "mined"]


class MemberConfig(Frozen):
    """A model that has a say."""

    model: str = Field(description="a folder, a stored student's URL, a hub name, or demo:NAME; ./ is beside the file")
    tokenizer: str | None = Field(None, description="null is the model's own")
    weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="its share; 0 leaves it out")
    dtype: Dtype = "float32"
    device: str | None = Field(None, description="cpu, cuda:1, …; null is the GPU where there is one")
    trust_remote_code: bool = Field(False, description="run the code that the model's folder carries")


class EnsembleConfig(Frozen):
    """Members, and how their next-token distributions become one. The first member leads: its tokenizer is used."""

    members: tuple[MemberConfig, ...] = Field(min_length=1)
    mean: Mean = Field("probabilities", description="or logprobs: the geometric mean, renormalized")
    vocabulary: JointVocabulary = Field(
        "shared",
        description="shared: the tokens that all members have; mined: the first one's tokens, for which every other "
        "member's nearest ones stand",
    )

    @model_validator(mode="after")
    def _someone_counts(self) -> Self:
        if not any(member.weight for member in self.members):
            raise ValueError("every weight is 0: give one member a weight above it")
        return self


def ensemble_file(name: str) -> Path | None:
    """The ensemble's file, where `name` is one or a folder that holds one; None for anything else."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    return path / FILE if (path / FILE).is_file() else None


def read_config(file: Path) -> EnsembleConfig:
    """The configuration in a file, its members' relative names (`./…`, `../…`) made paths.

    Raises UserError naming the file and the fields that are wrong.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        config = EnsembleConfig.model_validate(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: can't be read as YAML: {error}") from error
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors()]
        raise UserError(f"{file}: is no ensemble:\n" + "\n".join(lines)) from error
    members = tuple(member.model_copy(update=_beside(member, file.parent)) for member in config.members)
    return config.model_copy(update={"members": members})


def _beside(member: MemberConfig, folder: Path) -> dict[str, Any]:
    names = {"model": member.model, "tokenizer": member.tokenizer}
    return {key: str(folder / name) for key, name in names.items() if name and name.startswith(("./", "../"))}


def write_config(config: EnsembleConfig, folder: Path) -> Path:
    """Write `ensemble.yaml` into the folder, made where need be; raises UserError when one is there."""
    file = folder / FILE
    if file.exists():
        raise UserError(f"{file}: exists already: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
    return file
