"""Ensures that `storage` and `flows` are this project's: a user's own code may have modules of these names."""

import os
import sysconfig
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""the folder that the project's packages are in: a checkout, or an environment's site-packages"""


def require_own(package: str) -> None:
    """Raise ImportError if a package of this project is shadowed by another module of its name.

    It is not a UserError: that class is in `storage`, which may be the shadowed package.
    """
    spec = find_spec(package)
    if spec is None or not spec.origin:
        raise ImportError(f"alm-pipeline: its package {package!r} is missing: install alm-pipeline again", name=package)
    if Path(spec.origin).resolve() != ROOT / package / "__init__.py":
        raise ImportError(
            f"alm-pipeline: its package {package!r} is shadowed by {spec.origin}: rename that one, or start Python "
            "without its folder on the path (`python -P` leaves out the working folder; look at PYTHONPATH, too)",
            name=package,
        )


def environment_with_own() -> dict[str, str]:
    """Return this process's environment, for Python processes that must import this project's packages.

    A user's own packages of the same names do not shadow them.

    `python -m` puts the working folder first on the path, unless PYTHONSAFEPATH is set.
    """
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    if Path(sysconfig.get_path("purelib")).resolve() != ROOT:  # a checkout, which may be on this process's path alone
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return environment
