"""The installed wheel works outside the checkout, beside a user's own `storage.py` and `flows/`."""

import subprocess
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

from alm_pipeline.config import AlmConfig
from alm_pipeline.tokenization.templates.choice import known_templates
from tests.flows.loopback import Loopback, kill
from tests.wheel import ROOT, Installed, install, outside

pytestmark = [pytest.mark.flow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def users_folder(tmp_path: Path) -> Path:
    """A working folder with a user's own modules, which have the names of ours."""
    folder = tmp_path / "users"
    (folder / "flows").mkdir(parents=True)
    (folder / "flows" / "__init__.py").write_text("raise RuntimeError('the flows of a user')")
    (folder / "storage.py").write_text("raise RuntimeError('the storage of a user')")
    return folder


def test_the_wheel_holds_what_an_installation_needs(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = wheel.namelist()
        (metadata_file,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(wheel.read(metadata_file))
        assert wheel.read("flows/prefect.yaml") == (ROOT / "prefect.yaml").read_bytes()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"alm_pipeline", "flows", "storage"}
    assert {"alm_pipeline/py.typed", "flows/py.typed", "storage/py.typed"} <= set(names)
    templates = {f"alm_pipeline/tokenization/templates/{name}.jinja" for name in known_templates()}
    assert {"alm_pipeline/tokenization/templates/chatml.jinja"} <= templates <= set(names)
    assets = {file.relative_to(ROOT).as_posix() for file in ROOT.glob("alm_pipeline/**/assets/**/*") if file.is_file()}
    assert {"alm_pipeline/student_report/assets/page.html.jinja"} <= assets <= set(names)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_a_run_trains_in_two_processes_beside_a_users_modules(
    installed: Installed, users_folder: Path, config: AlmConfig, tmp_path: Path
) -> None:
    train = config.train.model_copy(update={"processes": 2, "accumulation": 2, "steps": 2})
    two = config.model_copy(update={"train": train})
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(two.model_dump(mode="json")))
    done = installed.run(installed.alm, "run", str(file), "--storage", str(tmp_path / "root"), cwd=users_folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.glob("root/students/*/manifest.json"))


def test_a_users_package_that_shadows_ours_is_named(installed: Installed, users_folder: Path) -> None:
    done = installed.run(installed.alm, "list", cwd=users_folder, PYTHONPATH=str(users_folder))
    assert done.returncode == 1
    assert "package 'storage' is shadowed by " + str(users_folder / "storage.py") in done.stderr
    (users_folder / "storage.py").unlink()
    done = installed.run(installed.alm, "list", cwd=users_folder, PYTHONPATH=str(users_folder))
    assert done.returncode == 1
    assert done.stderr.startswith("error: alm-pipeline: its package 'flows' is shadowed by ")
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """A server without deployments."""
    server = Loopback(tmp_path_factory.mktemp("prefect"))
    try:
        server.start()
        yield server
    finally:
        server.close()


def environment_of(server: Loopback) -> dict[str, str]:
    return {name: value for name, value in server.environment.items() if name != "PYTHONPATH"}


def test_all_deployments_are_registered_and_one_runs(
    installed: Installed, server: Loopback, config: AlmConfig, users_folder: Path, tmp_path: Path
) -> None:
    environment = environment_of(server)
    refused = installed.run(installed.alm, "deploy", cwd=users_folder, **environment)
    assert refused.returncode == 1
    assert "name another folder for the runs with --folder" in refused.stderr

    runs = tmp_path / "runs"
    runs.mkdir()
    arguments = ("--pool", "cpus", "--gpu-pool", "cpus", "--folder", str(runs))
    done = installed.run(installed.alm, "deploy", *arguments, cwd=users_folder, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    with server.client() as client:
        registered = {deployment.name: deployment for deployment in client.read_deployments()}
    listed = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert set(registered) == {deployment["name"] for deployment in listed}
    assert {deployment.work_pool_name for deployment in registered.values()} == {"cpus"}

    command = (installed.python, "-P", "-m", "prefect", "worker", "start", "--pool", "cpus", "--type", "process")
    with (server.folder / "worker-cpus.log").open("w") as log:
        worker = subprocess.Popen(
            command, cwd=users_folder, env=outside(**environment), stdout=log, stderr=log, start_new_session=True
        )
    try:
        # a relative root is in the runs' folder
        run = server.run("alm/cache", config=config.model_dump(mode="json"), storage="root")
        state = server.finished(run)
    finally:
        kill(worker)
    assert state.is_completed(), f"{state.message}\n{server.logs()}"
    assert list(runs.glob("root/teacher_scores/*/manifest.json"))
