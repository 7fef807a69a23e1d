"""Demonstrations and contrasts from files: what is left out and counted, and which columns are missing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alm_pipeline.editing.directions.demonstrations import demonstrations_dataset, write_demonstrations
from alm_pipeline.editing.directions.settings import DemonstrationsConfig
from alm_pipeline.editing.measurements import read_contrasts
from storage.errors import UserError


def prompts_of_demonstrations(config: DemonstrationsConfig, root: str) -> list[str]:
    dataset = demonstrations_dataset(config, root)
    assert write_demonstrations(dataset, config).dropped == {"invalid_utf8": 1}
    prompts: list[str] = dataset.read_shard(0, ["prompt"])["prompt"].to_pylist()
    return prompts


def prompts_of_contrasts(config: DemonstrationsConfig, root: str) -> list[str]:
    return [contrast.prompt for contrast in read_contrasts(config)]


@pytest.mark.bad_input
@pytest.mark.parametrize("prompts", [prompts_of_demonstrations, prompts_of_contrasts])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_rows_that_are_not_utf8_are_left_out(
    tmp_path: Path, prompts: Callable[[DemonstrationsConfig, str], list[str]], ending: str, column: int
) -> None:
    """They stopped an edit with a traceback: bytes of a CSV, or half of a pair of surrogates that JSON spells."""
    rows = [["What?", "this", "that"], ["Who?", "she", "he"]]
    rows[0][column] += "\udcf6"
    names = ("prompt", "positive", "negative")
    csv = "\n".join(",".join(row) for row in (names, *rows)).encode(errors="surrogateescape")
    lines = "\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows).encode()
    file = tmp_path / f"pairs.{ending}"
    file.write_bytes(csv if ending == "csv" else lines)
    assert prompts(DemonstrationsConfig(url=str(file)), str(tmp_path / "root")) == ["Who?"]


@pytest.mark.bad_input
def test_a_column_of_neutral_answers_that_no_row_has_is_refused(tmp_path: Path) -> None:
    """The model's own answers would take their place."""
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "What?", "positive": "this", "negative": "that"}))
    config = DemonstrationsConfig(url=str(file), neutral="nope")
    with pytest.raises(UserError, match="neutral: no demonstration has a text in the column 'nope'"):
        write_demonstrations(demonstrations_dataset(config, str(tmp_path / "root")), config)


def test_the_log_counts_rows_that_are_no_contrasts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = {"prompt": "It was", "positive": " good", "negative": " bad"}
    rows = [whole, whole | {"prompt": None}, whole | {"negative": ""}]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    with caplog.at_level("WARNING", "alm_pipeline"):
        assert len(read_contrasts(DemonstrationsConfig(url=str(file)))) == 1
    (message,) = caplog.messages
    assert "left out of the contrasts" in message
    assert "no_prompt_or_answers: 2" in message
