"""Weights that are NaN or infinite are found where a model is loaded, by the tensor's name."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alm_pipeline.comparison.texts import compare_models
from alm_pipeline.config import AlmConfig, CorpusConfig, FilesSource
from alm_pipeline.ensemble.config import EnsembleConfig, MemberConfig
from alm_pipeline.ensemble.generation import generate_text
from alm_pipeline.ensemble.loading import load_ensemble
from alm_pipeline.models.health.finite_weights import is_finite, not_finite_in
from alm_pipeline.models.loading import load_model
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.transfer.task_arithmetic import apply_transfer
from alm_pipeline.transfer.zero_step import transfer
from storage.errors import UserError

pytestmark = pytest.mark.bad_input

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "finite", "empty"])
@pytest.mark.parametrize("place", [0, 500, 999])
def test_any_value_counts(dtype: torch.dtype, value: str, place: int) -> None:
    values = torch.zeros(1000, dtype=torch.float32)
    if value not in ("finite", "empty"):
        values[place] = float(value)
    values = values.to(dtype)  # float8_e4m3fn has no infinity: it becomes NaN or the largest number
    if dtype == torch.float8_e4m3fn and value in ("inf", "-inf"):
        assert bool(is_finite(values)) == bool(values.float().isfinite().all())
        return
    assert bool(is_finite(values[:0] if value == "empty" else values)) == (value in ("finite", "empty"))


NAMES = ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight")


def spoiled(source: str, folder: Path, name: str = NAMES[1], value: float = float("nan")) -> str:
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    weights[name].flatten()[-1] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_tensor_is_named(llama_folder: str, tmp_path: Path, name: str, value: float, dtype: str) -> None:
    with pytest.raises(UserError, match=rf"weights are NaN or infinite: {name}: .* damaged"):
        load_model(spoiled(llama_folder, tmp_path / "bad", name, value), dtype)


def test_a_weight_beyond_the_dtype_names_the_dtype(llama_folder: str, tmp_path: Path) -> None:
    large = spoiled(llama_folder, tmp_path / "large", value=1e6)
    load_model(large, "float32")
    load_model(large, "bfloat16")
    with pytest.raises(UserError, match=r"exceed the range of float16: load it in bfloat16 or float32 \(score\.dtype"):
        load_model(large, "float16")


def _corpus(config: AlmConfig, tmp_path: Path) -> CorpusConfig:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "The lazy dog."}\n')
    return CorpusConfig(name="texts", source=FilesSource(urls=(str(file),)))


def _score(config: AlmConfig, bad: str, tmp_path: Path) -> object:
    return Pipeline(config.model_copy(update={"teacher": bad}), str(tmp_path / "data")).cache()


def _train(config: AlmConfig, bad: str, tmp_path: Path) -> object:
    student = config.student.model_copy(update={"model": bad})
    return Pipeline(
        config.model_copy(update={"student": student, "teacher": config.student.model}), str(tmp_path)
    ).run()


def _ensemble(config: AlmConfig, bad: str, tmp_path: Path) -> object:
    members = tuple(MemberConfig(model=model) for model in (config.student.model, bad))
    return load_ensemble(EnsembleConfig(members=members))


USES: dict[str, Callable[[AlmConfig, str, Path], object]] = {
    "scoring": _score,
    "training": _train,
    "transfer": lambda config, bad, tmp_path: transfer(bad, config.teacher, tmp_path / "moved"),
    "a donor": lambda config, bad, tmp_path: transfer(
        config.teacher, bad, tmp_path / "moved", initialization="omp", special_tokens="target"
    ),
    "task arithmetic": lambda config, bad, tmp_path: apply_transfer(
        config.student.model, config.student.model, bad, tmp_path / "moved"
    ),
    "an ensemble": _ensemble,
    "generation": lambda config, bad, tmp_path: generate_text(bad, "The", print, max_tokens=2),
    "comparison": lambda config, bad, tmp_path: compare_models([bad], [_corpus(config, tmp_path)]),
}


@pytest.mark.parametrize("use", USES)
def test_every_use_of_a_model_finds_it(config: AlmConfig, llama_folder: str, tmp_path: Path, use: str) -> None:
    bad = spoiled(llama_folder, tmp_path / "bad")
    with pytest.raises(UserError, match=rf"bad.*{NAMES[1]}"):
        USES[use](config, bad, tmp_path)


def test_a_stored_mask_is_no_weight(tmp_path: Path) -> None:
    """Older models stored the mask of their attention, which is infinite on purpose, and never read."""
    file = tmp_path / "model.safetensors"
    tensors = {"h.0.attn.masked_bias": -torch.inf, "h.0.ln.weight": 7e4, "h.0.ln.bias": torch.nan}
    save_file({name: torch.tensor([value]) for name, value in tensors.items()}, file)
    assert not_finite_in([file], "float32") == ["h.0.ln.bias"]
    assert not_finite_in([file], "float16") == ["h.0.ln.bias", "h.0.ln.weight"]
