"""No cache of a library answers with other content than what is there: Prefect's results, transformers' remote code."""

import json
import os
from pathlib import Path

import pytest
from prefect import Flow, Task
from prefect.cache_policies import NO_CACHE
from transformers import AutoConfig

from flows import alm, model_flows, tasks, verify

MODULES = (alm, model_flows, tasks, verify)


def test_prefect_stores_and_reuses_no_result() -> None:
    members = {id(member): member for module in MODULES for member in vars(module).values()}.values()
    all_tasks = [member for member in members if isinstance(member, Task)]
    all_flows = [member for member in members if isinstance(member, Flow)]
    assert len(all_tasks) >= 9
    assert [task.name for task in all_tasks if task.cache_policy is not NO_CACHE or task.persist_result] == []
    assert len(all_flows) >= 4
    assert [flow.name for flow in all_flows if flow.persist_result is not False] == []


def _model(folder: Path, value: int) -> Path:
    """A model folder whose configuration class is code, which imports a second file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "values.py").write_text(f"VALUE = {value}\n")
    (folder / "configuration_own.py").write_text(
        "from transformers import PretrainedConfig\n\nfrom .values import VALUE\n\n\n"
        f'class OwnConfig(PretrainedConfig):\n    model_type = "own"\n    value = VALUE * 10 + {value}\n'
    )
    auto_map = {"AutoConfig": "configuration_own.OwnConfig"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    for file in folder.iterdir():
        os.utime(file, (1000, 1000))  # same name, size and time: only the content differs
    return folder


@pytest.mark.parametrize("where", ["two folders of one name", "one folder that changes"])
def test_the_remote_code_that_runs_is_the_folders(tmp_path: Path, where: str) -> None:
    for value in (1, 2, 1):
        folder = tmp_path / (str(value) if where.startswith("two") else "same") / "model"
        loaded = AutoConfig.from_pretrained(_model(folder, value), trust_remote_code=True)
        assert loaded.value == value * 11
