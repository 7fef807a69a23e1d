"""Two processes give the losses and weights of one process, sharded or not, and also after resuming."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from alm_pipeline.config import AlmConfig, TrainConfig
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.training.parallel import processes
from alm_pipeline.training.parallel.processes import Process, local_process_count
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.training import together

ROOT = Path(__file__).parents[4]
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "tied": {"objective": {"terms": {"alm": 1, "sft": 0.5}}},
    "untied": {"objective": {"terms": {"alm": 1}, "balance": "gradmag"}},
    "live": {"objective": {"terms": {"alm": 1, "latents": 0.5}, "balance": "gradmag"}},
    "latents alone": {"objective": {"terms": {"latents": 1}}},
    "bfloat16": {"train": {"dtype": "bfloat16", "activation_checkpointing": True}},
}
COLUMNS = ["loss", "kl", "chunks", "tokens", "chunk_tokens", "used_share", "grad_norm", "learning_rate"]


@pytest.fixture(scope="module")
def untied_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    tokenizer = tiny.byte_level_tokenizer()
    model = tiny.tiny_llama(len(tokenizer), tied=False)
    return tiny.save(tmp_path_factory.mktemp("models") / "tiny-untied", model, tokenizer)


@pytest.fixture(scope="module")
def folder(config: AlmConfig, untied_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case trained by one process, by two, and by two sharded; some also resumed from a checkpoint of two."""
    folder = tmp_path_factory.mktemp("together")
    root = str(folder / "data")
    content = config.model_dump(mode="json")
    content["train"] |= {"steps": 4, "accumulation": 4, "checkpoint_steps": 2}
    orders = []
    for name, changes in CASES.items():
        model = untied_folder if name in ("untied", "latents alone") else config.student.model
        case = content | {"student": {"model": model}, "objective": changes.get("objective", content["objective"])}
        alone = case | {"train": case["train"] | changes.get("train", {})}
        Pipeline(AlmConfig.model_validate(alone), root).cache()
        together.train(alone, root, folder / name / "alone")
        for sharding in ("none", "fsdp"):
            both = alone | {"train": alone["train"] | {"sharding": sharding}}
            orders.append([both, root, str(folder / name / sharding), None])
            if name in ("tied", "live"):
                made = str(folder / name / sharding / together.MIDDLE)
                orders.append([both, root, str(folder / name / f"{sharding} resumed"), made])
    run_together(orders, folder)
    return folder


def run_together(orders: list[Any], folder: Path) -> None:
    (folder / "orders.json").write_text(json.dumps(orders))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.alm_pipeline.training.together", str(folder / "orders.json")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def log_of(folder: Path) -> pl.DataFrame:
    return pl.DataFrame(json.loads((folder / "log.json").read_text()))


def start_of(folder: Path, case: str) -> str:
    """Return the model that the training of the case starts from."""
    orders = json.loads((folder / "orders.json").read_text())
    return str(next(content["student"]["model"] for content, _, made, _ in orders if f"/{case}/" in made))


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return float(torch.stack([(one[name].float() - value.float()).norm() for name, value in other.items()]).norm())


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_result_of_one(folder: Path, case: str, sharding: str) -> None:
    alone, both = folder / case / "alone", folder / case / sharding
    tolerance = 2e-2 if case == "bfloat16" else 1e-4
    np.testing.assert_allclose(log_of(both).select(COLUMNS), log_of(alone).select(COLUMNS), rtol=tolerance)
    expected, found = weights_of(alone), weights_of(both)
    assert expected.keys() == found.keys()
    if case == "bfloat16":
        # Adam makes a full step of a gradient that is only rounding noise: compare with the distance moved
        initial = load_file(Path(start_of(folder, case)) / "model.safetensors")
        assert distance(found, expected) < 0.1 * distance(expected, initial)
        return
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=3e-5)


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
@pytest.mark.parametrize("case", ["tied", "live"])
def test_a_training_by_two_processes_resumes_to_the_same_bits(folder: Path, case: str, sharding: str) -> None:
    unbroken, resumed = folder / case / sharding, folder / case / f"{sharding} resumed"
    assert {"rng_state_0.pth", "rng_state_1.pth", "stream.json", "model.safetensors", "optimizer.pt"} <= {
        file.name for file in (unbroken / together.MIDDLE).iterdir()
    }
    assert log_of(resumed).select(COLUMNS).equals(log_of(unbroken).select(COLUMNS))
    for name, value in weights_of(unbroken).items():
        assert torch.equal(weights_of(resumed)[name], value), name


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_one_process_resumes_the_checkpoint_of_two(
    folder: Path, tmp_path: Path, config: AlmConfig, sharding: str
) -> None:
    orders = json.loads((folder / "orders.json").read_text())
    content, root, made, _ = next(order for order in orders if order[2].endswith(f"tied/{sharding}"))
    (tmp_path / "checkpoints").mkdir()
    Path(made, together.MIDDLE).rename(tmp_path / "checkpoints" / together.MIDDLE)
    together.train(content, root, tmp_path)
    Path(tmp_path, "checkpoints", "checkpoint-4").rename(Path(made, "last"))
    np.testing.assert_allclose(log_of(tmp_path).select(COLUMNS), log_of(Path(made)).select(COLUMNS), rtol=1e-4)
    for name, value in weights_of(Path(made)).items():
        torch.testing.assert_close(weights_of(tmp_path)[name], value, rtol=0, atol=3e-5)


def test_bfloat16_differs_from_float32_by_rounding(folder: Path, config: AlmConfig, tmp_path: Path) -> None:
    half = log_of(folder / "bfloat16" / "alone")
    orders = json.loads((folder / "orders.json").read_text())
    content, root, *_ = next(order for order in orders if "bfloat16" in order[2])
    content["train"]["dtype"] = "float32"
    together.train(content, root, tmp_path)
    full = log_of(tmp_path)
    assert not half["loss"].equals(full["loss"])
    np.testing.assert_allclose(half["loss"], full["loss"], rtol=5e-2)


def test_processes_share_a_step_equally(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert local_process_count(TrainConfig(accumulation=16)) == 8
    assert not caplog.text
    assert local_process_count(TrainConfig(accumulation=6)) == 6
    assert "use 6 of 8 GPUs: a multiple of 8 uses all" in caplog.text
    assert local_process_count(TrainConfig(accumulation=6, processes=3)) == 3
    with pytest.raises(UserError, match=r"train.accumulation: 6 .* use a multiple of 4"):
        local_process_count(TrainConfig(accumulation=6, processes=4))


def test_a_process_reads_its_rank_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.this_process() == Process(0, 1, 0, 1)
    for name, value in {"RANK": 2, "WORLD_SIZE": 4, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert processes.this_process().leads_another_machine
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not processes.this_process().leads_another_machine


def test_settings_of_the_computation_do_not_change_the_students_identity() -> None:
    computing = TrainConfig(
        processes=2, sharding="fsdp", activation_checkpointing=True, compile=True, attention="eager"
    )
    assert computing.identity() == TrainConfig().identity()
