"""The provenance of a dataset, for its manifest: what decides none of its bytes, but will be of interest later.

It is the same for an unbroken and a resumed run: no times, no machines. It contains no secrets: passwords and
signatures in URLs are removed.
"""

import platform
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from alm_pipeline.config import AlmConfig, parse_config
from alm_pipeline.runtime.versions import installed_version
from alm_pipeline.tokenization.engines.registry import FAST_ENGINES
from storage.errors import UserError
from storage.printed.secrets import LEFT_OUT, without_secrets

PACKAGES = (
    "alm-pipeline",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "peft",
    "jinja2",
    "pyarrow",
    "datasets",
    "numpy",
    *FAST_ENGINES,
)
_ROOT = Path(__file__).parents[1]


def provenance(config: AlmConfig) -> dict[str, Any]:
    """Return what a manifest records about a run: its configuration, the packages' versions and the commit."""
    return provenance_of(config.model_dump(mode="json"))


def provenance_of(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `provenance` does of a configuration as plain values, such as that of an edit."""
    return {"configuration": without_secrets(configuration), "versions": _versions(), **_commit()}


def stored_config(stored: dict[str, Any], origin: str) -> AlmConfig:
    """Return the configuration in a manifest's provenance; error messages call the dataset `origin`.

    Raises UserError if there is none, if this version can't run it, or if secrets were removed from it.
    """
    fix = "name the configuration with --config FILE (`alm show RECIPE` prints a recipe's)"
    if not stored.get("configuration"):
        raise UserError(f"{origin}: no manifest records the configuration that it was made with: {fix}")
    if LEFT_OUT in str(stored["configuration"]):
        raise UserError(f"{origin}: its configuration had a password or signature, which manifests don't store: {fix}")
    return parse_config(stored["configuration"], f"{origin}: its manifest", is_stored=True)


def _versions() -> dict[str, str]:
    packages = {name: version for name in PACKAGES if (version := installed_version(name))}
    return {"python": platform.python_version(), **packages}


@lru_cache(maxsize=1)
def _commit() -> dict[str, Any]:
    """Return the commit of this project's checkout and whether files have changed since; empty without a checkout."""
    lines = (_git("rev-parse", "--show-toplevel", "HEAD") or "").splitlines()
    # installed into an environment within another project's checkout, it has no commit of its own
    if len(lines) != 2 or Path(lines[0]).resolve() != _ROOT.resolve():
        return {}
    return {"commit": lines[1], "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
