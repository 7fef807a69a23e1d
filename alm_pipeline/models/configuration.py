"""What a model's configuration says: read by its own class, which knows the defaults that config.json leaves out.

A class may name a setting differently (`n_positions`, `max_seq_len`) and keep it in a part (`text_config`), so
everything that this project asks of a configuration is asked here, and which of transformers' classes loads the model:
the whole of a model that also reads images, where there is a class for it, so that what is saved again loads again.

Loading a configuration imports torch, which takes a second; `ModelConfiguration` is plain values, which are sent to the
processes that only tokenize and align.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alm_pipeline.models.files import CODE, SMALL_FILES, fetch_folder
from alm_pipeline.models.health.damage import check_documents
from alm_pipeline.models.health.library_log import quiet_transformers
from alm_pipeline.models.loaded_files import CONFIG, model_config
from storage.errors import UserError, user_error

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

CAUSAL, IMAGE_TEXT = "AutoModelForCausalLM", "AutoModelForImageTextToText"
# the names of the context length in classes that come with a model and do not map theirs to `max_position_embeddings`
_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "seq_length",
)


@dataclass(frozen=True)
class ModelConfiguration:
    """What the stages need to know of a model without loading it."""

    model_type: str
    class_name: str
    """the class in `transformers` that loads it"""
    vocabulary_rows: int
    """the rows of its embedding"""
    context_length: int | None
    """in tokens; None if the model has no limit"""
    weights_dtype: str
    """float32, unless the configuration names bfloat16 or float16"""

    @classmethod
    def read(cls, name: str, *, trust_remote_code: bool = False) -> "ModelConfiguration":
        """Read a model's configuration. Raises UserError as `load_config` does, and for what is not a language model's.

        The weights are not fetched.
        """
        return cls.of(load_config(name, trust_remote_code=trust_remote_code), name)

    @classmethod
    def of(cls, config: "PreTrainedConfig", name: str) -> "ModelConfiguration":
        """Return what a loaded configuration says; `name` is the model's, for errors."""
        return cls(
            str(config.model_type),
            class_name(config, name),
            _vocabulary_rows(config, name),
            context_length(config, name),
            _weights_dtype(config),
        )


def load_config(
    name: str, *, trust_remote_code: bool = False, revision: str | None = None, code_revision: str | None = None
) -> "PreTrainedConfig":
    """Load a model's configuration, without fetching its weights; the revisions are those of `loading.load_model`.

    Raises UserError if the folder has none, or its class can't be found or refuses it.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    folder = fetch_folder(name, (*SMALL_FILES, CODE) if trust_remote_code else SMALL_FILES, revision)
    check_documents(folder, (CONFIG,))
    settings = model_config(name, folder)
    kind, has_code = settings.get("model_type"), "auto_map" in settings
    if has_code and not trust_remote_code and str(kind) not in CONFIG_MAPPING:
        raise UserError(
            f"{name}: comes with its own code, as a student with n-gram embeddings does: if you trust it, set "
            "trust_remote_code to true"
        )
    if not isinstance(kind, str) and not has_code:
        # AutoConfig would guess the type from the folder's name
        raise UserError(f"{name}: {CONFIG} names no model_type: add the one of the model's family")
    fix = "fix that setting, or fetch the file again; for a new model_type, upgrade transformers"
    with user_error(f"{name}: {CONFIG} can't be used", fix), _one_line(), quiet_transformers():
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, code_revision=code_revision
        )
    return config


@contextmanager
def _one_line() -> Iterator[None]:
    """Put the whole message of a configuration class's check into one line: its first names only the check."""
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:
        raise ValueError(" ".join(str(error).split())) from error


def model_class(
    name: str, *, trust_remote_code: bool = False, revision: str | None = None, code_revision: str | None = None
) -> Any:
    """Return the class of transformers whose `from_pretrained` loads this model. Raises UserError as `read` does."""
    import transformers

    config = load_config(name, trust_remote_code=trust_remote_code, revision=revision, code_revision=code_revision)
    return getattr(transformers, ModelConfiguration.of(config, name).class_name)


def empty_model(config: "PreTrainedConfig", name: str, *, trust_remote_code: bool = False) -> "PreTrainedModel":
    """Build the model of a loaded configuration, with new weights. Raises UserError if it is not a language model."""
    import transformers

    loader = getattr(transformers, class_name(config, name))
    if not loader.__name__.startswith("Auto"):
        return loader(config)  # type: ignore[no-any-return]
    return loader.from_config(config, trust_remote_code=trust_remote_code)  # type: ignore[no-any-return]


def without_layers(config: "PreTrainedConfig") -> "PreTrainedConfig":
    """Return the configuration of the model's embedding, last norm and head alone, which are not quantized."""
    config = copy.deepcopy(config)
    text = text_config(config)
    layers = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == layers:  # one entry per layer
            setattr(text, name, [])
    text.num_hidden_layers = 0
    for part in {id(part): part for part in (config, text)}.values():
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    return config


def text_config(config: Any) -> Any:
    """Return the part of a loaded configuration that describes the language model; the whole for a plain one."""
    return config.get_text_config(decoder=True)


def context_length(config: Any, name: str | None = None) -> int | None:
    """Return the context length in tokens of a loaded configuration, or None if the model has no limit.

    It is the length that the configuration states, with what it says of scaled positions. Raises UserError, naming the
    model, if that is not a number of tokens.
    """
    text = text_config(config)
    names = _LENGTHS[:1] if type(text).__module__.startswith("transformers.") else _LENGTHS
    stated = ((setting, getattr(text, setting, None)) for setting in names)
    setting, length = next(((setting, value) for setting, value in stated if value is not None), ("", None))
    if length is None:
        return None
    return _positive(length, setting, name or config.model_type)


def ties_embeddings(config: Any) -> bool:
    """Whether the head of a loaded configuration's model is its embedding: the whole says it, or else its text part."""
    stated = (getattr(part, "tie_word_embeddings", None) for part in (config, text_config(config)))
    return bool(next((each for each in stated if each is not None), False))


def refuse_other_tables(config: Any, name: str) -> None:
    """Raise UserError if the model has tables by token besides embedding and head, which no transfer makes again.

    A test looks for such tensors in every class of transformers.
    """
    text = text_config(config)
    tables = {
        "embed_tokens_per_layer": getattr(text, "hidden_size_per_layer_input", None),  # Gemma 3n, some of Gemma 4
        "tid2eid": "hash_moe" in (getattr(text, "mlp_layer_types", None) or ()),  # DeepSeek V4
        "patcher": getattr(text, "patcher_config", None),  # BLT
    }
    if found := [table for table, is_there in tables.items() if is_there]:
        raise UserError(
            f"{name}: its layers look tokens up in a table of their own ({found[0]}), which can't be made for another "
            "tokenizer: keep the model's tokenizer, or name another model"
        )


def _vocabulary_rows(config: Any, name: str) -> int:
    rows = getattr(text_config(config), "vocab_size", None)
    if rows is None:
        raise UserError(
            f"{name}: {CONFIG} names no vocab_size, and neither does its class {type(config).__name__}: set it to the "
            "rows of the model's embedding"
        )
    return _positive(rows, "vocab_size", name)


def _positive(value: Any, setting: str, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name}: {CONFIG}: {setting} is {value!r}: set it to the model's own number, at least 1")
    return value


def _weights_dtype(config: Any) -> str:
    stated = (getattr(part, "dtype", None) for part in (config, text_config(config)))
    dtype = str(next((each for each in stated if each is not None), "")).removeprefix("torch.")
    return dtype if dtype in ("bfloat16", "float16") else "float32"


def class_name(config: Any, name: str) -> str:
    """Return the name of the class in `transformers` whose `from_pretrained` loads the model with a next-token head.

    `config` is the loaded configuration of the model `name`. Raises UserError for a model that does not predict the
    next token of one text: an encoder-decoder, a classifier, a model without a text part.
    """
    _check_is_language_model(config, name)
    found = _own_code(config) or _by_configuration(config) or _as_saved(config)
    if found is None:
        raise UserError(
            f"{name}: is of type {config.model_type!r}, for which transformers has no language model that predicts the "
            "next token: name a decoder-only language model"
        )
    return found


def _check_is_language_model(config: Any, name: str) -> None:
    from transformers.models.auto import modeling_auto as auto

    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{name}: is an encoder-decoder ({config.model_type!r}): it predicts an answer from a separate input, not "
            "the next token of one text: name a decoder-only language model"
        )
    saved, generative = _architectures(config), set(_names(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    others = (
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
        auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )
    other = {architecture for mapping in others for architecture in _names(mapping)} - generative
    if saved and all(architecture in other for architecture in saved):
        raise UserError(
            f"{name}: was saved as {saved[0]} (architectures in its config.json), which has no head that predicts the "
            "next token: name the language model that it was made from"
        )


def _architectures(config: Any) -> list[str]:
    saved = getattr(config, "architectures", None)
    saved = [saved] if isinstance(saved, str) else saved
    return [each for each in saved if isinstance(each, str)] if isinstance(saved, list | tuple) else []


def _names(mapping: Any) -> Iterator[str]:
    for value in mapping.values():
        yield from value if isinstance(value, tuple) else (value,)


def _own_code(config: Any) -> str | None:
    """Return the automatic class that a model's own code names, if its configuration is of that code."""
    named = getattr(config, "auto_map", None)
    if type(config).__module__.startswith("transformers.") or not isinstance(named, dict):
        return None
    return next((auto for auto in (CAUSAL, IMAGE_TEXT) if auto in named), None)


def _by_configuration(config: Any) -> str | None:
    from transformers.models.auto import modeling_auto as auto

    mappings = {CAUSAL: auto.MODEL_FOR_CAUSAL_LM_MAPPING, IMAGE_TEXT: auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING}
    has_text_part = config.get_text_config(decoder=True) is not config
    order = (IMAGE_TEXT, CAUSAL) if has_text_part else (CAUSAL, IMAGE_TEXT)
    return next((each for each in order if type(config) in mappings[each]), None)


def _as_saved(config: Any) -> str | None:
    """Return the class that the model was saved as: no automatic class knows Mllama's text model by itself."""
    from transformers.models.auto import modeling_auto as auto

    mappings = (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    generative = {architecture for mapping in mappings for architecture in _names(mapping)}
    return next((each for each in _architectures(config) if each in generative and _fits(each, config)), None)


def _fits(architecture: str, config: Any) -> bool:
    import transformers

    return getattr(getattr(transformers, architecture, None), "config_class", None) is type(config)
