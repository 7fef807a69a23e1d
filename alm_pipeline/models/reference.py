"""A model by name: what its files say of it, and how it is loaded. Without torch until it is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alm_pipeline.models.configuration import ModelConfiguration, load_config
from alm_pipeline.models.files import (
    CODE,
    SMALL_FILES,
    fetch_folder,
    is_on_hub,
    label,
    model_folder,
    tokenizer_files,
)
from alm_pipeline.models.hub import hub_weight_hashes
from alm_pipeline.models.loaded_files import (
    GENERATION_CONFIG,
    code_repositories,
    described_files,
    loaded_files,
    local_weight_files,
    model_config,
    refuse_adapter,
)
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.tokenization.templates.choice import TemplateChoice
from storage.errors import UserError
from storage.fingerprints import ReadFiles, combine_hashes, hash_file

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class ModelReference:
    """A model that is named, and need not be in memory."""

    name: str
    """a folder, a hub name, or `demo:NAME`"""
    trust_remote_code: bool = False
    """whether code in the model's folder may run"""
    template: TemplateChoice | None = field(default=None, compare=False)
    """what replaces the chat template of the tokenizer"""

    def __getstate__(self) -> dict[str, Any]:
        """Another process gets the name and the commit: it sees if the files differ there.

        And the configuration, if it is known: reading it takes the second that torch takes to import.
        """
        fetched: dict[str, Any] = {
            name: vars(self)[name] for name in ("revision", "configuration") if name in vars(self)
        }
        given = {"name": self.name, "trust_remote_code": self.trust_remote_code, "template": self.template}
        return {**given, **fetched}

    @cached_property
    def revision(self) -> str | None:
        """The commit of a hub's model, which is found once: a branch may move between two downloads."""
        return tokenizer_files(self.name).name if is_on_hub(self.name) else None

    @cached_property
    def folder(self) -> Path:
        """The local folder of the whole model, which is downloaded or converted first if needed."""
        return model_folder(self.name, self.revision)

    @cached_property
    def tokenizer(self) -> LoadedTokenizer:
        """The tokenizer in the model's folder."""
        return LoadedTokenizer(self.name, revision=self.revision, template=self.template)

    @cached_property
    def identity(self) -> str:
        """A hash of everything that decides the model's predictions, wherever it is: weights, configuration, code.

        The hub knows the hashes of its models' weights, so naming one fetches no weights. Raises UserError for a
        folder without weights: all such folders would be one model.
        """
        if self.revision:
            folder = fetch_folder(self.name, (*SMALL_FILES, CODE), self.revision)
            if weights := hub_weight_hashes(self.name, folder):
                described = described_files(self.name, folder, self._code)
                return combine_hashes({name: hash_file(file) for name, file in described.items()} | weights)
        return combine_hashes(self._files.hashes)

    def generation_config_hash(self) -> str | None:
        """Return the hash of its generation settings, or None if it has none.

        They decide no prediction, but are saved with a student that is made from the model.
        """
        file = tokenizer_files(self.name, self.revision) / GENERATION_CONFIG
        return hash_file(file) if file.is_file() else None

    @cached_property
    def _code(self) -> Mapping[str, Path] | None:
        """The folders of other repositories that its code comes from; None if no code of the model may run."""
        if not self.trust_remote_code:
            return None
        config = model_config(self.name, tokenizer_files(self.name, self.revision))
        return {repository: fetch_folder(repository, (CODE,)) for repository in code_repositories(config)}

    @cached_property
    def _files(self) -> ReadFiles:
        """The files that are loaded, as they are when they are first asked for."""
        return ReadFiles(lambda: loaded_files(self.name, self.folder, self._code))

    def weights(self) -> list[Path]:
        """Return the files of the weights that are loaded. From now on they must not change (`check_unchanged`).

        Raises UserError as `refuse_adapter` does.
        """
        self.refuse_adapter()
        names = local_weight_files(self.name, self.folder)
        self._files.check()
        return [self.folder / name for name in names if not name.endswith(".json")]

    def refuse_adapter(self) -> None:
        """Raise UserError if an adapter is loaded with the model, so that no other model can be made of it."""
        refuse_adapter(self.name, tokenizer_files(self.name, self.revision))

    def refuse_served_adapter(self) -> None:
        """Raise UserError if an adapter is loaded with the model here, which vLLM and SGLang do not load."""
        folder = tokenizer_files(self.name, self.revision)
        refuse_adapter(self.name, folder, "which transformers loads on top of the model, and a server does not")

    def check_unchanged(self) -> None:
        """Raise UserError if the files were changed since the identity was computed or the model was loaded.

        What is made with a model must not be finished before this. It is cheap; a hub's commit never changes.
        """
        if "_files" in vars(self):
            self._files.check()

    @property
    def label(self) -> str:
        """A short readable name for folders."""
        return label(self.name)

    @cached_property
    def configuration(self) -> ModelConfiguration:
        """What its configuration says. Raises UserError as `ModelConfiguration.read` does."""
        return ModelConfiguration.of(self.load_config(), self.name)

    def load_config(self) -> "PreTrainedConfig":
        """Load its configuration. Raises UserError as `configuration.load_config` does."""
        return load_config(
            self.name,
            trust_remote_code=self.trust_remote_code,
            revision=self.revision,
            code_revision=self._code_revision(),
        )

    @property
    def vocabulary_rows(self) -> int:
        """The rows of the model's embedding."""
        return self.configuration.vocabulary_rows

    @property
    def weights_dtype(self) -> str:
        """The dtype that the weights are stored in; float32 unless the configuration names bfloat16 or float16."""
        return self.configuration.weights_dtype

    @property
    def context_length(self) -> int | None:
        """The context length in tokens, or None if the model has no limit."""
        return self.configuration.context_length

    def load(
        self, dtype: str, *, device: str | None = None, device_map: str | dict[str, Any] | None = None
    ) -> "PreTrainedModel":
        """Load it as `models.loading.load_model` does. Raises UserError as `check_unchanged` does."""
        from alm_pipeline.models.loading import load_model

        self._files.check()
        model = load_model(
            self.name,
            dtype,
            trust_remote_code=self.trust_remote_code,
            device=device,
            device_map=device_map,
            revision=self.revision,
            code_revision=self._code_revision(),
        )
        self._files.check()
        return model

    def load_head(self, dtype: str, *, device: str | None = None) -> "PreTrainedModel":
        """Load it without its layers, as `models.loading.load_head_model` does. Raises UserError as `load` does."""
        from alm_pipeline.models.loading import load_head_model

        self._files.check()
        model = load_head_model(
            self.name,
            self.load_config(),
            dtype,
            trust_remote_code=self.trust_remote_code,
            device=device,
            revision=self.revision,
            code_revision=self._code_revision(),
        )
        self._files.check()
        return model

    def _code_revision(self) -> str | None:
        """Return the commit of the other repository on the hub that its code comes from; None if there is none."""
        commits = {folder.name for name, folder in (self._code or {}).items() if is_on_hub(name)}
        if len(commits) > 1:
            raise UserError(
                f"{self.name}: its code comes from several repositories ({', '.join(self._code or {})}): copy their "
                "*.py files into the model's folder, and name them without `repository--` in auto_map of config.json"
            )
        return next(iter(commits), None)
