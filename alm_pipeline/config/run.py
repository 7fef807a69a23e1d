"""A whole run: the configuration of all stages, read from YAML or JSON."""

import re
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from alm_pipeline.config.corpus import Corpus, CorpusConfig, SourceConfig, same_texts
from alm_pipeline.config.evaluation import EvaluationConfig
from alm_pipeline.config.fields.errors import wrong_fields
from alm_pipeline.config.fields.places import FileOrName, FolderOrName
from alm_pipeline.config.fields.repeated import each_once
from alm_pipeline.config.frozen import STORED, Frozen
from alm_pipeline.config.objective import LIVE_TERMS, ObjectiveConfig
from alm_pipeline.config.rounds import RoundsConfig
from alm_pipeline.config.scoring import ScoreConfig
from alm_pipeline.config.student import StudentConfig
from alm_pipeline.config.template import TemplateConfig
from alm_pipeline.config.training import TrainConfig
from storage.errors import UserError, user_error

_LONGEST_NAME = 60
"""of a mixture in names of folders"""
Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow"]


class LogConfig(Frozen):
    """Where training metrics go besides the student's folder. It decides nothing about the student."""

    report_to: tuple[Tracker, ...] = Field(
        (),
        description="Experiment trackers to log to: `tensorboard`, `wandb`, `trackio`, `mlflow`. Each needs its extra, "
        "such as `pip install 'alm-pipeline[tensorboard]'`. Default: none.",
    )
    project: str = Field(
        "alm-pipeline", min_length=1, description="The project in wandb and trackio; the experiment in mlflow."
    )
    run_name: str | None = Field(
        None,
        description="The run's name in the trackers; a resumed run continues under it. Default: `name` and the "
        "student's fingerprint, or the name of the student's folder.",
    )

    @field_validator("report_to")
    @classmethod
    def _are_different(cls, trackers: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
        return tuple(dict.fromkeys(trackers))


class PublishConfig(Frozen):
    """The Hub repository that the finished student is pushed to. It decides nothing about the student."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="The repository: `user/name` or `organization/name`.")
    private: bool = Field(True, description="Whether a repository that does not exist yet is created as private.")


class AlmConfig(Frozen):
    """Everything that decides what a run writes."""

    corpus: Corpus = Field(
        description="The texts, and how they are cut into examples. A list of these is a mixture: each source has a "
        "`weight` and, if need be, a `teacher` of its own.",
    )
    teacher: FolderOrName = Field(description="The teacher: a local folder, a name on the Hub, or `demo:NAME`.")
    teacher_template: FileOrName | TemplateConfig | None = Field(
        None,
        description="The teacher's chat template: a file with a Jinja template, the name of a known one (`chatml`, "
        "`plain`), the name of one that its tokenizer has, such as `tool_use`, or a section with arguments. Default: "
        "the tokenizer's own.",
    )
    student: StudentConfig = Field(description="The model that is trained, and its tokenizer.")
    score: ScoreConfig = Field(ScoreConfig(), description="How the teacher scores the examples.")
    objective: ObjectiveConfig = Field(ObjectiveConfig(), description="What the student is trained to match.")
    train: TrainConfig = Field(TrainConfig(), description="How the student is trained.")
    evaluation: EvaluationConfig = Field(
        EvaluationConfig(), description="How the student is evaluated on held-out examples."
    )
    rounds: RoundsConfig | None = Field(
        None,
        description="On-policy rounds after this training: `alm on-policy` runs them, and `alm run` ends before them. "
        "Default: none.",
    )
    name: str | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="What the run and its student are called in lists, legends, pictures and Prefect. It decides "
        "nothing about the weights, and a student that is finished keeps its name. Default: the settings that differ "
        "from others, such as `γ=0.2, steps=2000`.",
    )
    log: LogConfig = Field(LogConfig(), description="Where training metrics go besides the student's folder.")
    publish: PublishConfig | None = Field(
        None, description="The Hub repository that the finished student is pushed to. Default: not pushed."
    )
    trust_remote_code: bool = Field(
        False,
        description="Whether to run code that comes with models and tokenizers from the Hub. Only for repositories "
        "that you trust.",
    )

    @field_validator("name")
    @classmethod
    def _is_one_line(cls, name: str | None) -> str | None:
        if name is not None and not (name.isprintable() and name.strip()):
            raise ValueError("a name is one line of visible characters")
        return name and name.strip()

    @field_validator("corpus")
    @classmethod
    def _has_sources(cls, corpus: Corpus, info: ValidationInfo) -> Corpus:
        if isinstance(corpus, CorpusConfig):
            return corpus
        if not corpus:
            raise ValueError("is a list without a source; name at least one")
        names = [source.name for source in corpus]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two sources are called {twice}; give each a name of its own")
        if info.context != STORED and (twins := same_texts(corpus)):
            raise ValueError(
                f"the sources {' and '.join(twins)} are the same texts, which would count twice; leave one out, and "
                "give the other a higher weight"
            )
        return corpus

    @model_validator(mode="after")
    def _sources_are_compared_alike(self) -> Self:
        compared = [source for source in self.sources if source.deduplicate and source.deduplicate.across]
        measures = {(each.near, each.similarity, each.words) for each in (s.deduplicate for s in compared) if each}
        if len(measures) > 1:
            names = ", ".join(source.name for source in compared)
            raise ValueError(
                f"corpus: the sources {names} are compared with each other, and have different near, similarity or "
                "words in deduplicate; give them the same, or set across to false"
            )
        return self

    @model_validator(mode="after")
    def _teacher_fits_in_memory(self) -> Self:
        """Several teachers are scored one after another, and never in memory together."""
        if len(self.teachers) > 1 and self.objective.is_live:
            live = ", ".join(term for term in self.objective.terms if term in LIVE_TERMS)
            raise ValueError(
                f"objective.terms: {live} needs the teacher in memory during training, and corpus names several: "
                f"{', '.join(self.teachers)}; leave the term out, or use one teacher"
            )
        return self

    @property
    def is_mixture(self) -> bool:
        """Whether the corpus is a list of sources."""
        return not isinstance(self.corpus, CorpusConfig)

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The sources of a mixture; none if there is a single corpus."""
        return () if isinstance(self.corpus, CorpusConfig) else self.corpus

    @property
    def texts(self) -> CorpusConfig:
        """The corpus of a run that has a single one, such as a part of a mixture. Raises ValueError for a mixture."""
        if not isinstance(self.corpus, CorpusConfig):
            raise ValueError("the corpus is a list of sources: use each of `parts`, which has a single one")
        return self.corpus

    @property
    def parts(self) -> "tuple[AlmConfig, ...]":
        """The configuration of each source alone, up to its teacher's scores; of a single corpus, this one."""
        return tuple(map(self._part, self.sources)) if self.is_mixture else (self,)

    def _part(self, source: SourceConfig) -> "AlmConfig":
        template = self.teacher_template if source.teacher is None else None
        own = {"corpus": source.plain, "teacher": source.teacher or self.teacher}
        return self.model_copy(update={**own, "teacher_template": source.teacher_template or template})

    @property
    def teachers(self) -> tuple[str, ...]:
        """The names of all teachers, each once."""
        return tuple(each_once(source.teacher or self.teacher for source in self.sources)) or (self.teacher,)

    @property
    def corpus_name(self) -> str:
        """The corpus's name; of a mixture, those of its sources, or the first one's and the number of the others."""
        if not self.is_mixture:
            return self.texts.name
        names = "+".join(source.name for source in self.sources)
        first, others = self.sources[0].name, len(self.sources) - 1
        return names if len(names) <= _LONGEST_NAME else f"{first}+{others}-others"

    @model_validator(mode="after")
    def _rounds_have_a_start(self) -> Self:
        if self.rounds and self.rounds.start == "model" and self.student.tokenizer not in (None, self.student.model):
            raise ValueError(
                "rounds.start: with `model` the first round goes on from student.model as it is, and student.tokenizer "
                "gives it another tokenizer: use `student`, or leave the tokenizer out"
            )
        return self

    @property
    def title(self) -> str:
        """A readable name of the run."""
        return f"{self.corpus_name}: {' and '.join(self.teachers)} to {self.student.model}"


def load_config(file: Path) -> AlmConfig:
    """Load a configuration from a YAML or JSON file.

    Raises UserError naming the file and each wrong field, with its fix.
    """
    content = read_yaml(file, "`alm init` writes a valid configuration")
    if not isinstance(content, dict):
        raise UserError(f"{file}: is not a mapping of fields to values; `alm init` writes a complete configuration")
    return parse_config(content, str(file))


def read_yaml(file: Path, fix: str) -> Any:
    """Return the content of a YAML or JSON file. Raises UserError naming the file, the line, the problem and `fix`.

    A field that is there twice is a problem, too: YAML would take the last of its values.
    """
    with user_error(f"{file}: can't be read as YAML or JSON", fix):
        text = file.read_text(encoding="utf-8")
        try:
            _require_distinct_keys(yaml.compose(text, Loader=yaml.SafeLoader))
            return yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:  # its message begins with what was parsed before the problem
            mark = error.problem_mark
            where = f"line {mark.line + 1}: " if mark else ""
            raise ValueError(f"{where}{error.problem}{_quotes_hint(text, mark.line) if mark else ''}") from error


def _require_distinct_keys(root: yaml.Node | None) -> None:
    """Raise MarkedYAMLError if a mapping has a key twice."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:  # an alias, perhaps of what it is in
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            for key, value in node.value:
                waiting.append(value)
                if isinstance(key, yaml.ScalarNode) and keys.count(key.value) > 1:
                    raise yaml.MarkedYAMLError(problem=f"{key.value!r} is there twice", problem_mark=key.start_mark)


def _quotes_hint(text: str, line: int) -> str:
    """Return the fix for a text that YAML does not take for one: a template of columns without quotes."""
    lines = text.splitlines()
    if line < len(lines) and (found := _TEMPLATE_LINE.fullmatch(lines[line])):
        typed = found[2].rstrip()
        quoted = '"' + typed.replace('"', r"\"") + '"' if "\\" in typed else "'" + typed.replace("'", "''") + "'"
        return f" (a text with braces or colons is put into quotes: {found[1]}{quoted})"
    return ""


_TEMPLATE_LINE = re.compile(r"""\s*([\w.]+:\s+)([^'"|>\s].*\{\w+\}.*)""")


def parse_config(content: dict[str, Any], origin: str = "", *, is_stored: bool = False) -> AlmConfig:
    """Build a configuration from plain values; error messages begin with their source, `origin`.

    That of a finished run, `is_stored`, may have what was not refused when it ran.
    """
    try:
        return AlmConfig.model_validate(content, context=STORED if is_stored else None)
    except ValidationError as error:
        where = f"{origin}: " if origin else ""
        raise UserError(f"{where}the configuration is wrong:\n{wrong_fields(error, AlmConfig)}") from error
