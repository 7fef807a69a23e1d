"""Tiny models, and pairs of answers to edit them with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alm_pipeline.editing.directions.settings import ActivationConfig, DemonstrationsConfig, EditConfig
from alm_pipeline.editing.edit import Editing

ROWS = 40


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """40 demonstrations, whose answers have one length."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {"prompt": f"How many are {k} and {3 * k}?", "positive": f" They are {4 * k}", "negative": f" We have {k % 7}"}
        for k in range(ROWS)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def editing(pairs: str, llama_folder: str, tmp_path: Path) -> Callable[..., Editing]:
    """Make an edit of the last layer of a tiny model; settings are those of any of its configurations."""

    def make(model: str = llama_folder, root: Path = tmp_path / "store", **settings: Any) -> Editing:
        def config(kind: Any, **defaults: Any) -> Any:
            return kind(**{**defaults, **{name: it for name, it in settings.items() if name in kind.model_fields}})

        return Editing(
            model,
            config(DemonstrationsConfig, url=pairs),
            str(root),
            config(ActivationConfig, dtype="float32", neutral_tokens=3),
            config(EditConfig, layers="1", **({} if settings.get("method") == "mean_shift" else {"energy": 0.9})),
        )

    return make
