"""Registers the deployments of prefect.yaml with a Prefect server, from a checkout or from an installed wheel."""

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from alm_pipeline.runtime.own_packages import ROOT
from storage.errors import UserError

FILE = "prefect.yaml"
_PACKAGES = ("flows", "alm_pipeline", "storage")


def deploy(pools: Mapping[str, str], folder: Path) -> list[str]:
    """Register every deployment; returns their names, such as distill.

    `pools` maps the pools of prefect.yaml, alm and gpu, to the work pools to use: one that does not exist is created,
    with the type process. `folder` is the working folder of the runs, on the workers' machines.
    Raises UserError if there is no server, if a package in the folder shadows one of ours, or if Prefect refuses.
    """
    if not PREFECT_API_URL.value():
        raise UserError("alm deploy: needs a Prefect server: start `prefect server start`, and set PREFECT_API_URL")
    _check_folder(folder)
    for pool in dict.fromkeys(pools.values()):
        _create_missing_pool(pool)
    content = deployments(pools, folder)
    _prefect(("deploy", "--all"), yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return [deployment["name"] for deployment in content["deployments"]]


def deployments(pools: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """The content of prefect.yaml with these pools and this working folder."""
    content: dict[str, Any] = yaml.safe_load(_packaged_file().read_text(encoding="utf-8"))
    content.pop("definitions")
    for deployment in content["deployments"]:
        pool = deployment["work_pool"]
        deployment["work_pool"] = {**pool, "name": pools[pool["name"]]}
    content["pull"] = [{"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}]
    return content


def _packaged_file() -> Path:
    """A wheel holds prefect.yaml in this package; a checkout in its root."""
    packaged = Path(__file__).with_name(FILE)
    return packaged if packaged.is_file() else ROOT / FILE


def _check_folder(folder: Path) -> None:
    """Prefect imports a run's flow with its working folder first on the path."""
    for package in _PACKAGES:
        spec = PathFinder.find_spec(package, [str(folder)])
        if spec and spec.origin and Path(spec.origin).resolve() != ROOT / package / "__init__.py":
            raise UserError(
                f"--folder {folder}: {spec.origin} would shadow the package {package} of alm-pipeline in every run: "
                "name another folder for the runs with --folder"
            )


def _create_missing_pool(name: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            _prefect(("work-pool", "create", name, "--type", "process"))


def _prefect(arguments: Sequence[str], content: str = "") -> None:
    """Run Prefect's command in a folder that holds nothing but a prefect.yaml of this content.

    Prefect puts its working folder first on the path, where a user's own module would be imported instead of ours.
    """
    command = (sys.executable, "-P", "-m", "prefect", "--no-prompt", *arguments)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, FILE).write_text(content, encoding="utf-8")
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise UserError(f"prefect {' '.join(arguments)} failed:\n{(done.stdout + done.stderr).strip()}")
