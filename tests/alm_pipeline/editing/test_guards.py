"""What warns of an edit, and what its measures are, against their definitions."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alm_pipeline.comparison.corpora import texts_at
from alm_pipeline.comparison.texts import compare_models
from alm_pipeline.config import AlmConfig, ScoreConfig
from alm_pipeline.editing.directions.settings import EditEvaluationConfig
from alm_pipeline.editing.directions.stage import massive_channels
from alm_pipeline.editing.edit import Editing
from alm_pipeline.editing.evaluation import damage
from alm_pipeline.pipeline import Pipeline
from storage.errors import UserError

Make = Callable[..., Editing]


def rows(folder: Path, count: int = 12, **more: Any) -> str:
    file = folder / "rows.jsonl"
    found = [
        {"prompt": f"How are {k}", "positive": f" fine {k}", "negative": f" bad {k * 7}", **more} for k in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(file)


def test_the_control_is_measured_as_models_are_compared(editing: Make, tmp_path: Path, corpus_url: str) -> None:
    job, folder = editing(method="mean_shift", strength=3.0), tmp_path / "edited"
    settings = EditEvaluationConfig(control=corpus_url, control_examples=10)
    control = job.run(folder, settings).measures[0]
    models = [job.model, str(folder)]
    compared = compare_models(models, [texts_at(corpus_url, "text", 10)], ScoreConfig(dtype="float32")).total
    expected = [each.value.value for each in compared.bits_per_byte]
    assert [control["before"], control["after"]] == pytest.approx(expected, rel=1e-6)
    assert control["before"] != control["after"]
    assert control["items"] == 10


def test_log_odds_are_those_of_the_models_probabilities(editing: Make, tmp_path: Path) -> None:
    answers = [" one", " two or three", " more"]
    contrasts = rows(tmp_path, 3, positive=answers[:2], negative=answers[2])
    job, folder = editing(method="mean_shift"), tmp_path / "edited"
    measure = job.run(folder, EditEvaluationConfig(contrasts=contrasts)).measures[1]
    model = job.reference.load("float32").double()
    tokenizer = job.reference.tokenizer.fast

    def probability(prompt: str, answer: str) -> float:
        ids = torch.tensor([tokenizer(prompt + answer, add_special_tokens=False).input_ids])
        begin = len(tokenizer(prompt, add_special_tokens=False).input_ids)
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(-1)
        return math.exp(sum(float(logprobs[k - 1, ids[0, k]]) for k in range(begin, ids.shape[1])))

    odds = []
    for k in range(3):
        one, two, more = (probability(f"How are {k}", answer) for answer in answers)
        odds.append(math.log(one + two) - math.log(more))
    assert measure["before"] == pytest.approx(np.mean(odds), abs=1e-4)
    assert measure["difference"]["value"] == pytest.approx(measure["after"] - measure["before"])
    assert measure["difference"]["low"] <= measure["difference"]["value"] <= measure["difference"]["high"]


def test_a_damaged_model_is_reported(
    editing: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alm_pipeline.editing.evaluation.WORSE", -1.0)  # random weights can't get worse
    with caplog.at_level(logging.WARNING, "alm_pipeline"):
        editing(method="mean_shift").run(tmp_path / "edited")
    assert "the edit damages the model" in caplog.text
    monkeypatch.undo()
    assert damage([{"before": 1.0, "after": 1.2}]) is None
    assert "+21%" in str(damage([{"before": 1.0, "after": 1.21}]))


def test_few_and_unequal_demonstrations_are_reported(editing: Make, tmp_path: Path) -> None:
    job = editing(url=rows(tmp_path, 12, negative=" This is a whole sentence, and a long one."))
    warnings = job.write(tmp_path / "edited")["warnings"]
    assert len(warnings) == 4
    assert "bytes on average" in warnings[0]
    assert "end like a sentence" in warnings[1]
    assert "12 demonstrations: the least that the paper tries is 25" in warnings[2]
    assert "for activations of width 32" in warnings[3]
    assert all(warning[:20] in (tmp_path / "edited" / "README.md").read_text() for warning in warnings)


def test_massive_channels_are_found() -> None:
    squares = np.ones(64)
    squares[[3, 40]] = 101.0**2
    assert massive_channels(squares) == [3, 40]
    assert massive_channels(np.ones(64)) == massive_channels(np.zeros(64)) == []


def test_an_edit_of_massive_channels_is_reported(editing: Make, tmp_path: Path, llama_folder: str) -> None:
    job = editing(where="residual")
    model = job.reference.load("float32")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[5] *= 3000
    model.save_pretrained(tmp_path / "massive")
    job.reference.tokenizer.fast.save_pretrained(tmp_path / "massive")
    (warning,) = editing(str(tmp_path / "massive"), where="residual").write(tmp_path / "edited")["warnings"]
    assert "massive channels (in 1.layer: 5," in warning


@pytest.mark.bad_input
def test_what_can_be_known_before_is_refused_before(editing: Make, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for evaluation, message in (
        (EditEvaluationConfig(control=str(empty)), "no texts|empty"),
        (EditEvaluationConfig(contrasts=str(empty)), "no rows|empty|prompt"),
        (EditEvaluationConfig(control=str(tmp_path / "none.jsonl")), "none.jsonl"),
    ):
        with pytest.raises(UserError, match=message):
            editing().run(tmp_path / "edited", evaluation)
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "edited").exists()


def test_an_edited_teacher_scores_as_it_is(
    editing: Make, config: AlmConfig, tmp_path: Path, gemma_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scores are a dataset of their own, of the same examples."""
    monkeypatch.setattr("alm_pipeline.editing.folding.MOST_SPREAD", 1.0)  # the scales of random weights spread widely
    editing(gemma_folder, fold="always", energy=0.5).write(tmp_path / "edited")
    before = Pipeline(config, str(tmp_path / "runs"))
    after = Pipeline(config.model_copy(update={"teacher": str(tmp_path / "edited")}), str(tmp_path / "runs"))
    for pipeline in (before, after):
        pipeline.cache()
    assert after.examples.name == before.examples.name
    assert after.scores.name != before.scores.name
    first, second = (pipeline.scores.read_shard(0)["logprobs"].to_pylist() for pipeline in (before, after))
    assert (
        max(abs(a - b) for old, new in zip(first, second, strict=True) for a, b in zip(old[1:], new[1:], strict=True))
        > 1e-3
    )
