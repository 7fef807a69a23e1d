"""What the checks look at: a run's configuration, and what it names, each opened once.

What can't be opened becomes one finding. A check that needs it is skipped, so that a problem is reported once.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from alm_pipeline.config import BYTES, AlmConfig, CorpusConfig, TrainedTokenizer
from alm_pipeline.models.files import is_on_hub
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.preflight.corpus_sample import CorpusSample, read_sample
from alm_pipeline.preflight.findings import Finding, Severity, finding, finding_of, named_field
from alm_pipeline.preflight.phases import ALL_PHASES, Phase
from alm_pipeline.tokenization.templates.choice import TemplateChoice
from storage.dataset import Dataset
from storage.errors import UserError, cause, is_temporary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Value = TypeVar("Value")


class Unavailable(Exception):
    """Something that a check needs can't be opened. There is a finding about it."""


@dataclass(frozen=True)
class RunInputs:
    """What a run reads and where it writes, as the run itself opens it."""

    config: AlmConfig
    root: str
    teacher: ModelReference
    source: ModelReference
    """the student's model before it gets its tokenizer"""
    named_tokenizer: Callable[[], LoadedTokenizer | None]
    """returns the tokenizer that the configuration names for the student; None if the run makes it"""
    student_template: TemplateChoice | None
    """what replaces the chat template of the student's tokenizer"""
    corpus: Callable[[], CorpusConfig]
    """returns the corpus as the run cuts and normalizes it"""
    caches: Callable[[], Mapping[str, Dataset] | None]
    """returns the datasets that the student is trained on, by role, or None while the run has yet to make the tokenizer
    that they are named by; hashes the corpus and the models"""


@dataclass
class Context:
    """A run that is checked, and what was found so far."""

    inputs: RunInputs
    phases: Collection[Phase] = ALL_PHASES
    """what the run does"""
    here: Collection[Phase] = ALL_PHASES
    """what of it this machine does"""
    findings: list[Finding] = field(default_factory=list)
    _unavailable: set[str] = field(default_factory=set)

    @property
    def config(self) -> AlmConfig:
        return self.inputs.config

    @property
    def teacher(self) -> ModelReference:
        return self.inputs.teacher

    @property
    def source(self) -> ModelReference:
        return self.inputs.source

    def add(
        self, field: str, problem: str, fix: str, *, severity: Severity = "error", value: str | None = None
    ) -> None:
        """Add a finding about a field of the configuration."""
        self.findings.append(finding(self.config, field, problem, fix, severity, value))

    def add_error(
        self,
        error: Exception,
        field: str,
        severity: Severity = "error",
        value: str | None = None,
        *,
        names_field: bool = True,
    ) -> None:
        """Add the finding of an error about the field that its sentence names, or else about `field`.

        `names_field`: whether a field in the sentence is the one that it is about. What was found is not repeated.
        """
        about = (named_field(str(error), self.config) if names_field and value is None else None) or field
        found = finding_of(error, self.config, about, severity, value)
        if all((found.field, found.sentence) != (other.field, other.sentence) for other in self.findings):
            self.findings.append(found)

    @contextlib.contextmanager
    def noting(self, field: str) -> Iterator[None]:
        """Turn a UserError inside into a finding about the field, or about the one that it names."""
        try:
            yield
        except UserError as error:
            self.add_error(error, field)

    def opened(self, what: str, field: str, open_it: Callable[[], Value], value: str | None = None) -> Value:
        """Return what a function returns; if it raises UserError, there is one finding. Raises Unavailable then."""
        if what in self._unavailable:
            raise Unavailable(what)
        try:
            return open_it()
        except UserError as error:
            self.add_error(error, field, value=value)
        except Exception as error:
            if not is_temporary(error):
                raise
            # a run tries again later, so this does not stop it
            problem = f"can't be looked at now ({cause(error)})"
            self.add(field, problem, "check the connection", severity="warning", value=value)
        self._unavailable.add(what)
        raise Unavailable(what)

    # models and tokenizers

    @property
    def teacher_config(self) -> Any:
        self.opened("teacher's configuration", "teacher", lambda: self.teacher.configuration)
        return self._loaded_config(self.teacher)

    @property
    def source_config(self) -> Any:
        self.opened("student's configuration", "student.model", lambda: self.source.configuration)
        return self._loaded_config(self.source)

    def _loaded_config(self, model: ModelReference) -> Any:
        configs: dict[str, Any] = self.__dict__.setdefault("_configs", {})
        if model.name not in configs:
            configs[model.name] = model.load_config()
        return configs[model.name]

    @property
    def teacher_tokenizer(self) -> LoadedTokenizer:
        return self._tokenizer("teacher's tokenizer", "teacher", lambda: self.teacher.tokenizer)

    @property
    def source_tokenizer(self) -> LoadedTokenizer:
        return self._tokenizer("student's former tokenizer", "student.model", lambda: self.source.tokenizer)

    def _tokenizer(self, what: str, field: str, find: Callable[[], LoadedTokenizer]) -> LoadedTokenizer:
        def read() -> LoadedTokenizer:
            tokenizer = find()
            # the run needs them as well
            _ = tokenizer.fast, tokenizer.view, tokenizer.frame
            return tokenizer

        return self.opened(what, field, read)

    @property
    def student_tokenizer(self) -> LoadedTokenizer | None:
        """The student's tokenizer; one that the run makes is made in memory, and one that it trains is None."""
        if isinstance(self.config.student.tokenizer, TrainedTokenizer):
            return None
        if self.config.student.tokenizer is None:
            return self.templated_source
        return self.opened("student's tokenizer", "student.tokenizer", lambda: self._made_or_named)

    @property
    def templated_source(self) -> LoadedTokenizer:
        """The tokenizer of the student's model, with the student's template."""
        source = self.source_tokenizer
        if self.inputs.student_template is None:
            return source
        return self.opened("student's template", "student.template", lambda: self._with_student_template(source))

    def _with_student_template(self, tokenizer: LoadedTokenizer) -> LoadedTokenizer:
        templated: dict[str, LoadedTokenizer] = self.__dict__.setdefault("_templated", {})
        if tokenizer.name not in templated:
            templated[tokenizer.name] = tokenizer.with_template(self.inputs.student_template)
            _ = templated[tokenizer.name].fast
        return templated[tokenizer.name]

    @cached_property
    def _made_or_named(self) -> LoadedTokenizer:
        from alm_pipeline.new_tokenizer.byte_level import byte_level_tokenizer
        from alm_pipeline.new_tokenizer.special_tokens import keeps_source, with_special_tokens

        source, student = self.templated_source.fast, self.config.student
        if student.tokenizer == BYTES:
            return LoadedTokenizer.of(byte_level_tokenizer(source))
        named = self.inputs.named_tokenizer()
        assert named is not None
        _ = named.fast, named.view, named.frame
        lacks_template = not student.template_name
        if named.name == self.source.name or not keeps_source(
            source, named.fast, student.special_tokens, lacks_template=lacks_template
        ):
            return self._with_student_template(named)
        return LoadedTokenizer.of(with_special_tokens(source, named.fast))

    @property
    def template_fields(self) -> tuple[str, str]:
        """The settings that decide the teacher's and the student's chat template."""
        config = self.config
        teacher = "teacher" if config.teacher_template is None else "teacher_template"
        return teacher, "student.tokenizer" if config.student.template is None else "student.template"

    @property
    def keeps_tokenizer(self) -> bool:
        """Whether the student keeps its model's tokenizer."""
        return self.config.student.tokenizer in (None, self.source.name)

    # the corpus

    @property
    def corpus(self) -> CorpusConfig:
        """The corpus as the run cuts it; where the models can't be read, without what they decide."""
        if not self._unavailable:
            return self.inputs.corpus()
        return self.config.texts.model_copy(update={"max_bytes": self.config.texts.byte_limit})

    @property
    def sample(self) -> CorpusSample:
        return self.opened("corpus", "corpus.source", lambda: self._sample_once)

    @cached_property
    def _sample_once(self) -> CorpusSample:
        return read_sample(self.corpus)

    # the store

    @cached_property
    def store(self) -> str:
        """The root of the storage, which can be written to."""
        from alm_pipeline.preflight.storage_probe import probe_storage

        root = self.inputs.root
        self.opened("storage", "storage", lambda: probe_storage(root), root)
        return root

    # models without values

    def is_here(self, model: ModelReference) -> bool:
        """Whether the model's weights are on this machine already."""
        return not is_on_hub(model.name)

    @cached_property
    def student_outline(self) -> "PreTrainedModel":
        """The student's model without values, with all names and shapes. Raises Unavailable if there is none."""
        return self._outline(self.source_config, self.source)

    @cached_property
    def teacher_outline(self) -> "PreTrainedModel":
        """The teacher without values. Raises Unavailable if there is none."""
        return self._outline(self.teacher_config, self.teacher)

    def _outline(self, config: Any, model: ModelReference) -> "PreTrainedModel":
        from alm_pipeline.preflight.outline import outline

        field = "teacher" if model is self.teacher else "student.model"
        made = self.opened(f"{field}'s outline", field, lambda: outline(config, model))
        if made is None:
            raise Unavailable(model.name)
        return made
