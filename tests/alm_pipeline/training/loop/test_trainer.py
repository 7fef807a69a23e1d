"""The names of transformers' Trainer that `AlmTrainer` relies on exist in the installed version, and are all listed."""

import ast
import inspect
import tomllib
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from packaging.requirements import Requirement
from transformers import Trainer, TrainingArguments

from alm_pipeline.training.loop import trainer as trainer_module
from alm_pipeline.training.loop.arguments import AlmTrainingArguments
from alm_pipeline.training.loop.trainer import AlmTrainer

ROOT = Path(__file__).parents[4]
PRIVATE_OVERRIDES = {
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_get_grad_norm": ["self", "model", "grad_norm"],
}
PRIVATE_CALLS = {"_save_rng_state": ["self", "output_dir"], "_get_grad_norm": PRIVATE_OVERRIDES["_get_grad_norm"]}
PUBLIC_OVERRIDES = {
    "create_optimizer": ["self", "model"],
    "get_train_dataloader": ["self"],
    "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "log": ["self", "logs", "start_time"],
    "evaluate": ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"],
    "save_model": ["self", "output_dir", "_internal_call"],
    "floating_point_ops": ["self", "inputs"],
}


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def overridden() -> set[str]:
    """The functions of `AlmTrainer` that the Trainer has too."""
    return {name for name, value in vars(AlmTrainer).items() if inspect.isfunction(value) and hasattr(Trainer, name)}


@pytest.mark.parametrize(("name", "expected"), [*PRIVATE_OVERRIDES.items(), *PRIVATE_CALLS.items()])
def test_private_methods_have_the_expected_signature(name: str, expected: list[str]) -> None:
    assert parameters(getattr(Trainer, name)) == expected


@pytest.mark.parametrize(("name", "expected"), PUBLIC_OVERRIDES.items())
def test_public_hooks_have_the_expected_signature(name: str, expected: list[str]) -> None:
    assert parameters(getattr(Trainer, name)) == expected


def test_only_listed_methods_are_overridden() -> None:
    """A helper that happens to have the name of a method of a later Trainer is found here too."""
    assert overridden() - {"__init__"} == PRIVATE_OVERRIDES.keys() | PUBLIC_OVERRIDES.keys()


def test_only_listed_private_names_are_used() -> None:
    tree = ast.parse(inspect.getsource(trainer_module))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")}
    own = set(vars(AlmTrainer)) | _assigned(tree)
    foreign = {name for name in used - own if not name.startswith("__")} | (used & PRIVATE_OVERRIDES.keys())
    assert foreign == PRIVATE_CALLS.keys() | {"_is_accelerate_prepared"}


def _assigned(tree: ast.AST) -> set[str]:
    """The attributes of `self` that the module itself assigns."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


@pytest.mark.parametrize("name", [*PRIVATE_OVERRIDES, *PUBLIC_OVERRIDES])
def test_the_trainer_calls_what_is_overridden(name: str) -> None:
    """Otherwise an override would have no effect, and nothing would fail. `evaluate` is called by `_evaluate`."""
    assert f"self.{name}(" in inspect.getsource(Trainer)


def test_accelerate_leaves_prepared_models_alone() -> None:
    assert '"_is_accelerate_prepared"' in inspect.getsource(Accelerator.prepare_model)


@pytest.mark.parametrize("name", ["n_gpu", "place_model_on_device"])
def test_arguments_override_properties(name: str) -> None:
    assert isinstance(getattr(TrainingArguments, name), property)
    assert name in vars(AlmTrainingArguments)
    assert f"args.{name}" in inspect.getsource(Trainer)


def test_transformers_is_bounded_above() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project.get("optional-dependencies", {}).values()
    requirements = [Requirement(text) for group in (project["dependencies"], *extras) for text in group]
    bounds = [requirement.specifier for requirement in requirements if requirement.name == "transformers"]
    assert bounds
    assert all(any(bound.operator in ("<", "<=") for bound in specifier) for specifier in bounds)
