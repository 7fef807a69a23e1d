"""Which files of a model's folder decide what `from_pretrained` loads, as this project calls it. Without torch.

A test observes which files transformers opens, and compares them with these. Files of the second kind that it opens,
`generation_config.json` and `custom_generate/`, decide how a model generates, and none of its scores.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alm_pipeline.models.files import CODE
from alm_pipeline.models.health.damage import INDEX, read_json
from storage.errors import UserError, user_error

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
ADAPTER = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_WEIGHTS = "model.safetensors"
_MERGE = (
    "merge it into its model and save that "
    "(peft.AutoPeftModelForCausalLM.from_pretrained(…).merge_and_unload().save_pretrained(…)), or remove its files to "
    "use the model without it"
)
_CODED_CLASSES = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForImageTextToText")
"""the entries of a configuration's `auto_map` that loading a model follows"""


def loaded_files(name: str, folder: Path, code: Mapping[str, Path] | None) -> dict[str, Path]:
    """Return the files that decide the model `name` in a local folder, by their names in an identity.

    `code` is as for `described_files`. Raises UserError if the folder has no configuration or no weights.
    """
    weights = local_weight_files(name, folder)
    return {file: folder / file for file in weights} | described_files(name, folder, code)


def described_files(name: str, folder: Path, code: Mapping[str, Path] | None) -> dict[str, Path]:
    """Return the files of `loaded_files` besides the weights: the configuration and the code.

    `code` holds the folders of the repositories of `code_repositories`; it is None if no code of the model may run.
    """
    config = model_config(name, folder)
    files = {file: folder / file for file in [CONFIG, *_versioned_config(folder)]}
    return files if code is None else files | _code_files(config, folder, code)


def local_weight_files(name: str, folder: Path) -> list[str]:
    """Return the names of a local folder's weights and of their index. Raises UserError as `weight_files` does."""
    return weight_files(name, folder, lambda file: (folder / file).is_file())


def weight_files(name: str, folder: Path, exists: Callable[[str], bool]) -> list[str]:
    """Return the names of the weights and of their index, which is in the local folder.

    `exists` returns whether a model has a file, because a hub's weights may not be on this machine. Raises UserError
    if there are no weights.
    """
    adapter = _adapter_files(name, exists)
    named = model_config(name, folder).get("transformers_weights")
    if not isinstance(named, str | None):
        raise UserError(f"{folder / CONFIG}: its transformers_weights is not the name of a file: remove it")
    first = next((file for file in ([named] if named else [_WEIGHTS, INDEX]) if exists(file)), None)
    if first is None:
        raise UserError(
            f"{name}: holds no weights ({named or f'{_WEIGHTS}, or {INDEX}'}): load it with transformers and save it "
            "(save_pretrained) first, or, if it comes from a hub, fetch the weights while online"
        )
    if not first.endswith(".index.json"):
        return [first, *adapter]
    shards = read_json(folder / first).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise UserError(
            f"{folder / first}: its weight_map is not an object of file names by tensor: fetch it again, or save the "
            "model again (save_pretrained)"
        )
    return [first, *sorted(set(shards.values())), *adapter]


def _adapter_files(name: str, exists: Callable[[str], bool]) -> list[str]:
    """Return the files of an adapter beside a model, if transformers loads it on top: it does if peft is installed."""
    if not exists(ADAPTER) or not is_peft_available():
        return []
    if not exists(_ADAPTER_WEIGHTS):
        raise UserError(f"{name}: contains an {ADAPTER} without {_ADAPTER_WEIGHTS}: {_MERGE}")
    return [ADAPTER, _ADAPTER_WEIGHTS]


def refuse_adapter(name: str, folder: Path, why: str = "which can't be made into another model") -> None:
    """Raise UserError if an adapter is loaded with the model: transformers would save the adapter alone."""
    if (folder / ADAPTER).is_file() and is_peft_available():
        raise UserError(f"{name}: contains an adapter ({ADAPTER}), {why}: {_MERGE}")


def model_config(name: str, folder: Path) -> dict[str, Any]:
    """Return the configuration that this version of transformers reads.

    Raises UserError if the folder has none, or it is damaged.
    """
    if not (folder / CONFIG).is_file() and (folder / ADAPTER).is_file():
        raise UserError(f"{name}: is an adapter without its model: {_MERGE}")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{name}: has no {CONFIG}, so it is not a model's folder: name one that save_pretrained wrote")
    file = folder / next(iter(_versioned_config(folder)), CONFIG)
    config = read_json(file)
    for setting, kind in (("auto_map", dict), ("transformers_weights", str)):
        if not isinstance(config.get(setting), kind | None):
            raise UserError(f"{file}: {setting} is {config[setting]!r}: remove it, or fetch the file again")
    return config


def _versioned_config(folder: Path) -> list[str]:
    """Return the file that `config.json` names for this version of transformers, if there is one."""
    files = read_json(folder / CONFIG).get("configuration_files")
    if not isinstance(files, list):
        return []
    from transformers.configuration_utils import get_configuration_file  # imports torch

    with user_error(f"{folder / CONFIG}: its configuration_files {files} can't be ordered by version", "correct it"):
        chosen = get_configuration_file([str(file) for file in files])
    return [] if chosen == CONFIG else [chosen]


def _code_files(config: Mapping[str, Any], folder: Path, code: Mapping[str, Path]) -> dict[str, Path]:
    """Return all files of code in the folders that code is loaded from: one may import another in many ways."""
    is_here = any("--" not in reference for reference in _code_references(config))
    files = _python_files(folder) if is_here else {}
    for repository in code_repositories(config):
        files |= {f"{repository}--{file}": path for file, path in _python_files(code[repository]).items()}
    return files


def code_repositories(config: Mapping[str, Any]) -> list[str]:
    """Return the other repositories that the model's code comes from."""
    return sorted({reference.split("--")[0] for reference in _code_references(config) if "--" in reference})


def _code_references(config: Mapping[str, Any]) -> list[str]:
    classes = config.get("auto_map")
    if not isinstance(classes, dict):
        return []
    return [str(classes[kind]) for kind in _CODED_CLASSES if classes.get(kind)]


def _python_files(folder: Path) -> dict[str, Path]:
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob(CODE) if file.is_file()}
    return {name: file for name, file in files.items() if not f"/{name}".count("/.")}


def is_peft_available() -> bool:
    """Return whether transformers loads adapters, as it sees that itself."""
    from transformers.utils.import_utils import is_peft_available as is_available  # importing it takes a second

    return bool(is_available())


def check_same(name: str, identity: str, expected: str, made: str) -> None:
    """Raise UserError if the files here are others than those that `made` is named by, as on another machine."""
    if identity != expected:
        raise UserError(
            f"{name}: its files differ from those that {made} is made with: give all machines the same files, and "
            "don't change them while a run uses them"
        )
