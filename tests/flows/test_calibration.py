"""The flow `calibrate`: what it returns, writes and shows."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.client.schemas.objects import Artifact

from flows.models.calibration import calibrate

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_server")]


def test_the_flow_scores_reports_and_shows(
    llama_folder: str, gemma_folder: str, tmp_path: Path, shown: Callable[[str], list[Artifact]]
) -> None:
    rows = [{"prompt": f"Sold {k}", "choices": ["clips", "foxes"], "answer": k % 2} for k in range(8)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output, storage = str(tmp_path / "out"), str(tmp_path / "store")
    questions = str(tmp_path / "questions.jsonl")
    result = calibrate([llama_folder, gemma_folder], questions, output=output, storage=storage, resamples=50)
    assert [row["model"] for row in result["models"]] == [llama_folder, gemma_folder]
    assert len(list((tmp_path / "store").glob("choice_scores/*/manifest.json"))) == 2
    page, table = shown("alm-calibration")
    assert [row["model"] for row in json.loads(str(table.data))] == [llama_folder, gemma_folder]
    assert str(page.data).count("data:image/png;base64,") == 2
    again = calibrate([llama_folder, gemma_folder], questions, output=output, storage=storage, resamples=50)
    assert again == result
