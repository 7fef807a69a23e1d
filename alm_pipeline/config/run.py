"""A whole run: its parts together, read from YAML or JSON."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from alm_pipeline.config.corpus import CorpusConfig
from alm_pipeline.config.evaluation import EvaluationConfig
from alm_pipeline.config.frozen import Frozen
from alm_pipeline.config.objective import ObjectiveConfig
from alm_pipeline.config.scoring import ScoreConfig
from alm_pipeline.config.student import StudentConfig
from alm_pipeline.config.training import TrainConfig
from storage.errors import UserError

Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]


class LogConfig(Frozen):
    """Where training's metrics go besides the student's folder; decides nothing of the student."""

    report_to: tuple[Tracker, ...] = Field(
        (), description="each needs its extra: pip install 'alm-pipeline[tensorboard]'"
    )
    project: str = Field("alm-pipeline", min_length=1, description="of wandb and trackio; mlflow's experiment")
    run_name: str | None = Field(None, description="by default the student's folder's name; what is resumed goes by it")


class PublishConfig(Frozen):
    """The hub's repository that the finished student goes to; decides nothing of the student."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="user/name, or organization/name")
    private: bool = Field(True, description="where the repository is not there yet and has to be made")


class AlmConfig(Frozen):
    """Everything that decides what a run writes."""

    corpus: CorpusConfig
    teacher: str = Field(description="a folder, a hub name, or demo:NAME")
    student: StudentConfig
    score: ScoreConfig = ScoreConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    log: LogConfig = LogConfig()
    publish: PublishConfig | None = Field(None, description="push the finished student to the Hugging Face hub")
    trust_remote_code: bool = False

    @property
    def title(self) -> str:
        """What a person calls a run."""
        return f"{self.corpus.name}: {self.teacher} to {self.student.model}"


def load_config(file: Path) -> AlmConfig:
    """A configuration from a YAML or JSON file.

    Raises UserError naming the file and the fields that are wrong, each with its mend.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: can't be read as YAML or JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds no mapping of fields; `alm show transfer` prints a complete configuration")
    return parse_config(content, str(file))


def parse_config(content: dict[str, Any], origin: str) -> AlmConfig:
    """A configuration from plain values; `origin` names where they come from in an error."""
    try:
        return AlmConfig.model_validate(content)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise UserError(f"{origin}: the configuration is wrong:\n" + "\n".join(lines)) from error
