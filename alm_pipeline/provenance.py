"""Where a dataset comes from, for its manifest: what decides no byte of it, but what one wants to know in a year.

The same for an unbroken and a resumed run: no times, no machines. Nothing here is secret either: passwords and
signatures in URLs are left out.
"""

import platform
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

from alm_pipeline.config import AlmConfig, parse_config
from alm_pipeline.runtime.versions import installed_version
from storage.errors import UserError
from storage.secrets import LEFT_OUT, without_secrets

PACKAGES = ("alm-pipeline", "torch", "transformers", "tokenizers", "pyarrow", "datasets", "numpy", "kitoken")
_ROOT = Path(__file__).parents[1]


def provenance(config: AlmConfig) -> dict[str, Any]:
    """What a manifest says of a run of this configuration: that itself, the packages' versions and the commit."""
    return {"configuration": without_secrets(config.model_dump(mode="json")), "versions": _versions(), **_commit()}


def stored_config(kept: dict[str, Any], origin: str) -> AlmConfig:
    """The configuration that a manifest's provenance holds; `origin` is the dataset, for errors.

    Raises UserError when it holds none, one that this version can't run, or one without its secrets.
    """
    mend = "name the configuration with --config FILE (`alm show RECIPE` prints a recipe's)"
    if not kept.get("configuration"):
        raise UserError(f"{origin}: no manifest here says by which configuration it was made: {mend}")
    if LEFT_OUT in str(kept["configuration"]):
        raise UserError(f"{origin}: its configuration has a password or signature, which no manifest keeps: {mend}")
    return parse_config(kept["configuration"], f"{origin}: its manifest")


def _versions() -> dict[str, str]:
    found = {name: version for name in PACKAGES if (version := installed_version(name))}
    return {"python": platform.python_version(), **found}


@lru_cache(maxsize=1)
def _commit() -> dict[str, Any]:
    """The commit of this project's checkout, and whether files were changed since; nothing where it is none."""
    lines = (_git("rev-parse", "--show-toplevel", "HEAD") or "").splitlines()
    # installed into an environment that lies in another project's checkout, it has no commit
    if len(lines) != 2 or Path(lines[0]).resolve() != _ROOT.resolve():
        return {}
    return {"commit": lines[1], "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
