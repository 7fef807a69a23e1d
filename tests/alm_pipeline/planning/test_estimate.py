"""A plan, beside what the run then does: what is missing, how much of it, and why."""

import json
from pathlib import Path
from typing import Any

import pytest

from alm_pipeline.config import AlmConfig, StudentConfig, TrainedTokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.planning.changes import KINDS
from alm_pipeline.planning.comparison import compare
from alm_pipeline.planning.duration import Rates, record_rates
from alm_pipeline.planning.estimate import make_plan
from alm_pipeline.planning.plan import STAGES, Plan, Stage, StagePlan
from alm_pipeline.planning.probe import measure
from alm_pipeline.recipes.overrides import Overrides, override
from alm_pipeline.repair import WRITTEN_BY
from alm_pipeline.report import summarize
from storage.schemas import Kind
from storage.upkeep.catalog import KINDS as STORED_KINDS


def stage(plan: Plan, name: Stage) -> StagePlan:
    return next(each for each in plan.stages if each.stage == name)


def missing(plan: Plan) -> set[str]:
    return {each.stage for each in plan.stages if each.state != "complete"}


def test_the_plan_of_an_empty_store_is_within_15_percent(
    config: AlmConfig, finished_store: Path, tmp_path: Path
) -> None:
    plan = make_plan(Pipeline(config, str(tmp_path)))
    assert missing(plan) == {each.stage for each in plan.stages} == set(STAGES) - {"train tokenizer", "pair biases"}
    assert list(tmp_path.iterdir()) == []
    compared = {each.what: each for each in compare(plan, summarize(Pipeline(config, str(finished_store))), {})}
    assert set(compared) == {"examples", "text bytes", "teacher tokens", "student tokens", "cache"}
    assert {what: each.deviation for what, each in compared.items() if abs(each.deviation) > 0.15} == {}


def test_the_plan_of_a_finished_store_is_what_its_manifests_say(config: AlmConfig, finished_store: Path) -> None:
    plan = make_plan(Pipeline(config, str(finished_store)))
    summary = summarize(Pipeline(config, str(finished_store)))
    assert {stage.state for stage in plan.stages} == {"complete"}
    assert plan.teacher_tokens
    assert plan.student_tokens
    assert (plan.teacher_tokens.value, plan.student_tokens.value) == (summary.teacher_tokens, summary.student_tokens)
    amounts = (plan.examples, plan.held_out_examples, plan.text_bytes, plan.cache_bytes_per_teacher_token, plan.seconds)
    assert all(amount and amount.exact for amount in (*amounts, plan.teacher_tokens, plan.student_tokens))
    assert plan.seconds
    assert plan.seconds.value == 0
    assert compare(plan, summary, {"score": 1.0}) == []


def test_shards_that_are_written_are_counted(config: AlmConfig, store: Path) -> None:
    scores = Pipeline(config, str(store)).scores
    shards = len(scores.complete_manifest().shards)
    assert shards >= 2
    (Path(scores.url) / "manifest.json").unlink()
    Path(scores.record_url(shards - 1)).unlink()
    plan = make_plan(Pipeline(config, str(store)))
    found = stage(plan, "score")
    assert (found.state, found.shards_done) == ("partly", shards - 1)
    assert found.left
    assert found.amount
    assert found.left.value == pytest.approx(found.amount.value / shards)
    assert missing(plan) == {"score"}


def test_a_stopped_shard_stage_is_counted_without_a_manifest(config: AlmConfig, store: Path) -> None:
    examples = Pipeline(config, str(store)).examples
    (Path(examples.url) / "manifest.json").unlink()
    Path(examples.record_url(1)).unlink()
    found = stage(make_plan(Pipeline(config, str(store))), "shard")
    assert (found.state, found.shards_done) == ("partly", 1)


def test_a_tokenizer_to_be_trained_is_stood_in_for(config: AlmConfig, tmp_path: Path) -> None:
    student = StudentConfig(model=config.student.model, tokenizer=TrainedTokenizer(vocab_size=400, train_bytes=4096))
    pipeline = Pipeline(config.model_copy(update={"student": student}), str(tmp_path))
    plan = make_plan(pipeline)
    assert "tokens are estimated with the tokenizer that the model has now" in " ".join(plan.notes)
    assert stage(plan, "train tokenizer").state == "missing"
    pipeline.cache()
    after = make_plan(Pipeline(pipeline.config, str(tmp_path)))
    assert missing(after) == {"train"}
    assert after.notes == () or "estimated with the tokenizer" not in " ".join(after.notes)


@pytest.mark.parametrize("tokenizer", ["bytes", "teacher's"])
def test_a_tokenizer_that_is_made_without_training_is_planned_as_it_will_be(
    config: AlmConfig, tokenizer: str, tmp_path: Path
) -> None:
    name = config.teacher if tokenizer == "teacher's" else tokenizer
    student = StudentConfig(
        model=config.student.model, tokenizer=name, special_tokens="auto" if name == "bytes" else "source"
    )
    pipeline = Pipeline(config.model_copy(update={"student": student}), str(tmp_path))
    plan = make_plan(pipeline)
    assert stage(plan, "train tokenizer").state == "missing"
    assert plan.student_tokens
    pipeline.cache()
    assert plan.student_tokens.value == pytest.approx(
        pipeline.tokens("student").complete_manifest().counts["tokens"], rel=0.15
    )


@pytest.mark.parametrize("is_trained", [False, True])
def test_texts_that_the_student_s_context_cuts(is_trained: bool, config: AlmConfig, tmp_path: Path) -> None:
    lines = [json.dumps({"text": " ".join(f"{k * j} apples in April." for j in range(800))}) for k in range(6)]
    (tmp_path / "long.jsonl").write_text("\n".join(lines))
    source = {"corpus.source": {"kind": "files", "urls": [f"{tmp_path}/long.jsonl"]}, "corpus.max_bytes": 4096}
    tokenizer = {"student.tokenizer": {"vocab_size": 400, "train_bytes": 4096}} if is_trained else {}
    pipeline = Pipeline(override(config, Overrides(settings={**source, **tokenizer})), str(tmp_path / "store"))
    assert pipeline.cuts_by_tokens
    plan = make_plan(pipeline)
    assert stage(plan, "shard").state == "missing"
    assert plan.examples
    assert plan.student_tokens
    if is_trained:  # the dataset has no name yet, and another tokenizer cuts it for the plan
        assert "tokens are estimated" in " ".join(plan.notes)
        return
    examples, tokens = pipeline.shard(), pipeline.tokenize("student")
    assert tokens
    assert plan.examples.value == pytest.approx(examples.rows, rel=0.15)
    assert plan.student_tokens.value == pytest.approx(tokens.counts["tokens"], rel=0.15)


def test_a_run_until_the_scores_has_no_training(config: AlmConfig, tmp_path: Path) -> None:
    assert "train" not in {each.stage for each in make_plan(Pipeline(config, str(tmp_path)), with_student=False).stages}


def test_rates_that_are_given_make_hours_and_costs(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = Pipeline(config, str(tmp_path))
    guessed = make_plan(pipeline)
    assert guessed.seconds
    assert any("--measure" in note and "--score-rate" in note and "--train-rate" in note for note in guessed.notes)
    plan = make_plan(pipeline, Rates(score=10, train=1, price_per_hour=3600))
    trained = stage(plan, "train")
    train = config.train
    assert trained.seconds
    assert trained.seconds.value == pytest.approx(train.steps * train.batch_tokens, rel=0.01)
    assert trained.cost
    assert trained.cost.value == pytest.approx(trained.seconds.value)
    assert plan.seconds
    assert plan.seconds.value > trained.seconds.value
    assert plan.notes == ()


def test_rates_of_a_run_and_of_a_measurement_are_used_by_the_next_plan(config: AlmConfig, tmp_path: Path) -> None:
    pipeline = Pipeline(config, str(tmp_path))
    record_rates(pipeline, {"score": 4000.0, "train": 1000.0, "shard": 0.0}, {"score": 43.0, "train": 15.0})
    plan = make_plan(pipeline, with_student=True)
    scored = stage(plan, "score")
    assert scored.seconds
    assert scored.amount
    assert scored.seconds.value == pytest.approx(3 + scored.amount.value / 100)
    assert plan.seconds


def test_a_measurement_runs_both_models(config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alm_pipeline.planning.probe._LEAST_S", 0.05)
    pipeline = Pipeline(config, str(tmp_path))
    measured = measure(pipeline)
    assert set(measured) == {"score", "train"}
    assert all(rate > 100 for rate in measured.values())
    assert make_plan(pipeline).notes == ()  # they were recorded


CHANGES: dict[str, tuple[dict[str, Any], set[str], str]] = {
    "gamma": ({"objective.gamma": 0.25}, {"train"}, "objective.gamma 0.1 → 0.25"),
    "steps": ({"train.steps": 7}, {"train"}, "train.steps 6 → 7"),
    "learning rates": ({"train.learning_rates": {"*embed*": 0.01}}, {"train"}, "train.learning_rates"),
    "evaluation": ({"evaluation.student": "best"}, {"train"}, "evaluation.student"),
    "speed alone": ({"train.compile": True}, set(), ""),
    "scores": ({"score.mantissa_bits": 10}, {"score", "train"}, "score.mantissa_bits 15 → 10"),
    "cutting": (
        {"corpus.max_bytes": 120},
        {"shard", "tokenize teacher", "tokenize student", "align", "score", "train"},
        "corpus.max_bytes 200 → 120",
    ),
    "pair biases": ({"objective.chunking": "pair_bias"}, {"pair biases", "train"}, "objective.chunking"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_setting_recomputes_what_depends_on_it(change: str, config: AlmConfig, finished_store: Path) -> None:
    settings, recomputed, reason = CHANGES[change]
    plan = make_plan(Pipeline(override(config, Overrides(settings=settings)), str(finished_store)))
    assert missing(plan) == recomputed
    first = next((each for each in plan.stages if each.stage in recomputed and each.reasons), None)
    assert reason in " ".join(first.reasons if first else ())
    follow = [each for each in plan.stages if each.stage in recomputed and each is not first and each.reasons]
    assert all("follows from" in " ".join(each.reasons) for each in follow)


def test_other_files_under_the_same_settings_are_named_as_that(
    config: AlmConfig, finished_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alm_pipeline.scoring.stage.STAGE_VERSION", 99)
    plan = make_plan(Pipeline(config, str(finished_store)))
    assert missing(plan) == {"score", "train"}
    assert "same settings, but other files" in stage(plan, "score").reasons[0]
    assert stage(plan, "train").reasons == ("follows from score",)


def test_every_stage_has_the_folder_of_a_store() -> None:
    assert set(KINDS) == set(STAGES)
    others = {str(kind) for kind in WRITTEN_BY}  # no stages of a distillation
    within_shard = {"signatures", "decisions"}
    assert set(KINDS.values()) == {str(kind) for kind in STORED_KINDS} - others - within_shard
    assert KINDS["shard"] == Kind.EXAMPLES
