"""Approximate Likelihood Matching as a data pipeline. These are its public names:

    from alm_pipeline import Pipeline, recipe

    student = Pipeline(recipe("transfer"), "alm-data").run()

Each name is imported when it is first used, so that `import alm_pipeline` takes milliseconds.
"""

import sys

if sys.argv[0].rsplit("/", 1)[-1] == "alm" or sys.orig_argv[1:3] == ["-m", __name__]:
    # this is the command: what a terminal sends while its modules load waits for its supervisor
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))

from importlib import import_module
from typing import TYPE_CHECKING, Any

from alm_pipeline.runtime.own_packages import require_own

if TYPE_CHECKING:
    from alm_pipeline.config import AlmConfig, load_config
    from alm_pipeline.pipeline import Pipeline
    from alm_pipeline.recipes.recipes import recipe
    from storage.errors import UserError

    __version__: str

__all__ = ["AlmConfig", "Pipeline", "UserError", "__version__", "load_config", "recipe"]

_MODULES = {
    "AlmConfig": "alm_pipeline.config",
    "Pipeline": "alm_pipeline.pipeline",
    "UserError": "storage.errors",
    "load_config": "alm_pipeline.config",
    "recipe": "alm_pipeline.recipes.recipes",
}

require_own("storage")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__


def _version() -> str:
    """The installed version; a checkout that is only on the path has none."""
    from importlib import metadata  # takes longer than all of the above

    try:
        return metadata.version("alm-pipeline")
    except metadata.PackageNotFoundError:
        return "unknown"
