"""A model by name: what its files say of it, and how it is loaded. Without torch until it is loaded."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from alm_pipeline.models.files import is_on_hub, label, length_in, model_folder, tokenizer_files
from alm_pipeline.models.hub import hub_hashes
from alm_pipeline.models.tokenizer import LoadedTokenizer
from storage.errors import UserError
from storage.fingerprints import MODEL_FILES, MODEL_WEIGHTS, combine_hashes, hash_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ModelReference:
    """A model that is named, and need not be in memory."""

    name: str
    """a folder, a hub name, or `demo:NAME`"""
    trust_remote_code: bool = False
    """whether code in the model's folder may run"""

    @cached_property
    def tokenizer(self) -> LoadedTokenizer:
        """The tokenizer in the model's folder."""
        return LoadedTokenizer(self.name)

    @cached_property
    def identity(self) -> str:
        """A hash of the model's weights and configuration, wherever they are.

        The hub knows the hashes of its models' weights, so naming one fetches no weights. Raises UserError for a
        folder without weights: all such folders would be one model.
        """
        if is_on_hub(self.name) and (hashes := hub_hashes(self.name)):
            return combine_hashes(hashes)
        folder = model_folder(self.name)
        if not any(folder.glob(MODEL_WEIGHTS)):
            raise UserError(
                f"{self.name}: holds no weights ({MODEL_WEIGHTS}): load it with transformers and save it "
                "(save_pretrained) first, or, if it comes from a hub, fetch the weights while online"
            )
        return hash_files(folder, MODEL_FILES)

    @property
    def label(self) -> str:
        """A short readable name for folders."""
        return label(self.name)

    @property
    def vocabulary_rows(self) -> int:
        """The rows of the model's embedding, according to its configuration."""
        return int(self._config["vocab_size"])

    @property
    def weights_dtype(self) -> str:
        """The dtype that the weights are stored in; float32 unless the configuration names bfloat16 or float16."""
        dtype = str(self._config.get("dtype") or self._config.get("torch_dtype"))
        return dtype if dtype in ("bfloat16", "float16") else "float32"

    @property
    def context_length(self) -> int | None:
        """The context length in tokens, or None if the configuration does not state it."""
        return length_in(self._config)

    def load(
        self, dtype: str, *, device: str | None = None, device_map: str | dict[str, Any] | None = None
    ) -> "PreTrainedModel":
        """Load it as `models.loading.load_model` does."""
        from alm_pipeline.models.loading import load_model

        return load_model(
            self.name, dtype, trust_remote_code=self.trust_remote_code, device=device, device_map=device_map
        )

    @cached_property
    def _config(self) -> dict[str, Any]:
        file = tokenizer_files(self.name) / "config.json"
        if not file.is_file():
            raise UserError(f"{self.name}: has no config.json, so it is not a model's folder")
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return {**config, **config.get("text_config", {})}
