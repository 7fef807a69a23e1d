"""Points between a base model and its child: what is scored, shared, resumed and refused."""

import copy
import json
import logging
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.calibration.calibrate import (
    ComparedModels,
    QuestionCalibration,
    QuestionSource,
    TextCalibration,
    TextSource,
)
from alm_pipeline.calibration.report.settings import Sweep, parse_weights
from alm_pipeline.calibration.scored_models import QuestionScorer, ScoredModel
from alm_pipeline.merging.merge import merge_models
from alm_pipeline.merging.rule import MergeMethod, MergeRule
from storage.errors import UserError
from tests import tiny


class Family(NamedTuple):
    base: str
    tuned: str
    questions: str
    folder: Path
    tied: bool

    def calibration(self, *weights: float, method: MergeMethod = "linear", density: float = 1.0) -> QuestionCalibration:
        source, root = QuestionSource(self.questions), str(self.folder / "store")
        models = ComparedModels((self.base, self.tuned), Sweep(weights, method, density))
        return QuestionCalibration(models, source, root)

    def stored(self) -> dict[str, bytes]:
        files = (self.folder / "store").rglob("*")
        return {str(file.relative_to(self.folder)): file.read_bytes() for file in files if file.is_file()}


def save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def child_of(model: PreTrainedModel) -> PreTrainedModel:
    generator, child = torch.Generator().manual_seed(1), copy.deepcopy(model)
    for value in child.parameters():
        value.data += 0.1 * torch.randn(value.shape, generator=generator)
    return child


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def family(request: pytest.FixtureRequest, byte_level: PreTrainedTokenizerFast, tmp_path: Path) -> Family:
    model = tiny.tiny_llama(len(byte_level), tied=request.param)
    rows = [
        {"prompt": f"Natalia sold {k} clips.", "choices": ["The quick", f"{k}", "return left + right"], "answer": k % 3}
        for k in range(12)
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = save(tmp_path / "base", model, byte_level)
    tuned = save(tmp_path / "tuned", child_of(model), byte_level)
    return Family(base, tuned, str(tmp_path / "questions.jsonl"), tmp_path, request.param)


def logprobs(calibration: QuestionCalibration) -> list[list[list[float]]]:
    datasets = [scored.scoring.scores for scored in calibration.scored]
    return [dataset.read_shard(0)["logprobs"].to_pylist() for dataset in datasets]


@pytest.mark.parametrize(("method", "density"), [("linear", 1.0), ("slerp", 1.0), ("ties", 0.3), ("dare", 0.5)])
def test_a_point_scores_as_the_folder_that_is_merged_there(family: Family, method: MergeMethod, density: float) -> None:
    """Also after other points, in any order: nothing adds up in the model in memory."""
    calibration = family.calibration(0.7, 0.3, 1.2, method=method, density=density)
    calibration.run()
    names = [family.base, family.tuned]
    for weight in (0.3, 0.7, 1.2):
        names.append(str(family.folder / f"{method}-{weight}"))
        merge_models(family.base, family.tuned, names[-1], MergeRule(method, weight, density))
    alone = QuestionCalibration(
        ComparedModels(tuple(names)), QuestionSource(family.questions), str(family.folder / "alone")
    )
    alone.run()
    assert [scored.weight for scored in calibration.scored] == [0, 1, 0.3, 0.7, 1.2]
    assert logprobs(calibration) == logprobs(alone)


def test_methods_share_the_parents_and_single_models_do_too(family: Family) -> None:
    family.calibration(0, 0.5, 1).run()
    first = family.stored()
    slerp = family.calibration(0, 0.5, 1, method="slerp")
    slerp.run()
    assert len([name for name in family.stored() if name.endswith("manifest.json")]) == 1 + 3 + 1
    assert {name: family.stored()[name] for name in first} == first
    QuestionCalibration(
        ComparedModels((family.tuned,)), QuestionSource(family.questions), str(family.folder / "store")
    ).run()
    sparse = family.calibration(1, method="ties", density=0.5)
    assert [scored.name for scored in sparse.scored] == ["base", "tuned", "ties, weight 1, density 0.5"]
    sparse.run()
    assert len([name for name in family.stored() if name.endswith("manifest.json")]) == 1 + 3 + 1 + 1


class _Killed(BaseException):
    pass


def test_a_run_that_is_killed_between_points_continues_to_the_same_bytes(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    family.calibration(0.25, 0.5, 0.75).run()
    whole = family.stored()
    other = family._replace(folder=family.folder / "again")
    from alm_pipeline.calibration.scored_models import ModelsInTurn

    loaded: list[str] = []
    scorer = ModelsInTurn.scorer

    def killed_after(self: ModelsInTurn, model: ScoredModel) -> QuestionScorer:
        if len(loaded) == 3:
            raise _Killed
        loaded.append(model.label)
        return scorer(self, model)

    monkeypatch.setattr(ModelsInTurn, "scorer", killed_after)
    with pytest.raises(_Killed):
        other.calibration(0.25, 0.5, 0.75).run()
    del loaded[:]
    other.calibration(0.25, 0.5, 0.75).run()
    assert len(loaded) == 2  # of five
    assert other.stored() == whole
    other.calibration(0.25, 0.5, 0.75).run()
    assert len(loaded) == 2


def test_far_weights_warn_and_the_report_is_of_all(family: Family, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        calibration = family.calibration(-0.6, 0.5)
        calibration.run()
    assert "weight -0.6: far beyond both parents" in caplog.text
    report = calibration.report()
    assert report.questions == {"all": 12, "validation": 6, "test": 6}
    names = [point.name for point in report.measures["sum", "all"]]
    assert names == ["base", "tuned", "linear, weight -0.6", "linear, weight 0.5"]


@pytest.mark.bad_input
def test_parents_that_do_not_fit_are_refused_before_anything_is_scored(
    family: Family, byte_level: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    wide = save(tmp_path / "wide", tiny.tiny_llama(len(byte_level) + 8, family.tied), byte_level)
    gemma = save(tmp_path / "gemma", tiny.tiny_gemma(600), tiny.sentencepiece_tokenizer())
    other = tiny.byte_level_tokenizer(texts=["entirely other words for other merges " * 3])
    renamed = save(tmp_path / "renamed", tiny.tiny_llama(len(byte_level), family.tied), other)
    for tuned, message in {
        wide: r"(embed_tokens|lm_head)\.weight has shape",
        gemma: "only models of one architecture",
        renamed: "tokenizers have other ids for",
    }.items():
        with pytest.raises(UserError, match=message):
            family._replace(tuned=tuned).calibration(0.5).run()
    adapter = tmp_path / "adapter"
    save(adapter, tiny.tiny_llama(len(byte_level)), byte_level)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"}))
    with pytest.raises(UserError, match="adapter"):
        family._replace(tuned=str(adapter)).calibration(0.5).run()
    assert family.stored() == {}


@pytest.mark.bad_input
def test_what_a_sweep_needs_is_said(family: Family) -> None:
    with pytest.raises(UserError, match="--weights: name a base model and its tuned child, not 1 models"):
        ComparedModels((family.base,), Sweep((0.5,)))
    with pytest.raises(UserError, match="is named twice"):
        ComparedModels((family.base, family.base))
    with pytest.raises(UserError, match="density 2: the share of changes that is kept"):
        family.calibration(0.5, method="ties", density=2).run()
    with pytest.raises(UserError, match="are of merges: name their weights too"):
        Sweep.chosen(None, "ties", 0.5, 0)
    assert Sweep.chosen(None, "linear", 1.0, 0) is None


def test_weights_are_ranges_or_lists() -> None:
    assert parse_weights("0:1:0.1") == (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
    assert parse_weights("-0.5:1.5:0.5") == (-0.5, 0, 0.5, 1, 1.5)
    assert parse_weights("1,0.25, 0.25") == (0.25, 1)
    for wrong in ("0:1", "0:1:0", "1:0:0.1", "a", "nan", "0:1:0.001", "0:inf:1", ""):
        with pytest.raises(ValueError, match=r"."):
            parse_weights(wrong)


def test_the_weights_of_an_ensemble_are_a_sweep_too(family: Family, gemma_folder: str) -> None:
    """Also of models with different tokenizers; at equal members every point is the member."""
    twin = shutil.copytree(family.base, family.folder / "twin")
    models = ComparedModels((family.base, str(twin)), Sweep((0, 0.3, 1), "ensemble"))
    calibration = QuestionCalibration(models, QuestionSource(family.questions), str(family.folder / "store"))
    calibration.run()
    assert [scored.weight for scored in calibration.scored] == [0, 1, 0.3]
    found = logprobs(calibration)
    assert np.concatenate(found[0]) == pytest.approx(np.concatenate(found[2]), abs=1e-4)
    other = ComparedModels((family.base, gemma_folder), Sweep((0.5,), "ensemble"))
    calibration = QuestionCalibration(other, QuestionSource(family.questions), str(family.folder / "store"))
    calibration.run()
    assert calibration.report().is_sweep
    with pytest.raises(UserError, match=r"weight 1\.5: an ensemble's is from 0"):
        ComparedModels((family.base, family.tuned), Sweep((1.5,), "ensemble")).listed()
    with pytest.raises(UserError, match="ensembles have no next bytes"):
        TextCalibration(other, TextSource(family.questions, "prompt"), str(family.folder / "store")).run()
