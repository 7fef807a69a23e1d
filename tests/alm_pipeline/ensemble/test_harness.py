# ruff: noqa: E402
"""lm-evaluation-harness evaluates an ensemble like a model."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'alm-pipeline[eval]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from alm_pipeline.ensemble.harness import HarnessModel, evaluate, json_results
from alm_pipeline.ensemble.loading import LoadedMember, ensemble_of, load
from alm_pipeline.ensemble.logprobs import text_logprobs
from alm_pipeline.models.reference import ModelReference
from storage.errors import UserError

PAIRS = [("The quick brown", " fox"), ("def add(left,", " right):\n"), ("", "東京"), ("Natalia sold", " 48 clips")]


def requests(kind: str, arguments: list[Any]) -> list[Instance]:
    return [Instance(kind, {}, each, k) for k, each in enumerate(arguments)]


def answers(model: HFLM) -> tuple[list[Any], list[Any], list[Any]]:
    """The answers to the three kinds of requests."""
    likelihoods = model.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    rolling = model.loglikelihood_rolling(requests("loglikelihood_rolling", [("The quick",), ("a b",)]), True)
    until = [(text, {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}) for text, _ in PAIRS if text]
    return likelihoods, rolling, model.generate_until(requests("generate_until", until), disable_tqdm=True)


@pytest.mark.parametrize("folder", ["llama_folder", "gemma_folder"])
def test_an_ensemble_of_a_model_with_itself_answers_as_the_model(folder: str, request: pytest.FixtureRequest) -> None:
    model, tokenizer = load(request.getfixturevalue(folder))
    alone = answers(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2))
    both = answers(HarnessModel(ensemble_of([LoadedMember(model, tokenizer)] * 2), batch_size=2))
    for ours, theirs in zip(both[0], alone[0], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert both[1] == pytest.approx(alone[1], abs=1e-4)
    assert both[2] == alone[2]


@pytest.mark.parametrize("vocabulary", ["shared", "mined"])
def test_two_families_answer_with_their_common_distribution(
    llama_folder: str, gemma_folder: str, vocabulary: Any
) -> None:
    ensemble = ensemble_of(
        [LoadedMember(*load(gemma_folder)), LoadedMember(*load(llama_folder))], vocabulary=vocabulary
    )
    found, rolling, texts = answers(HarnessModel(ensemble, batch_size=2))
    for (context, continuation), (likelihood, _) in zip(PAIRS, found, strict=True):
        if context:
            whole, front = text_logprobs(ensemble, [context + continuation, context])
            expected = whole.logprobs[len(front.token_ids) :].sum()
            assert likelihood == pytest.approx(float(expected), abs=1e-3)
    assert all(math.isfinite(each) for each in rolling)
    inputs = ensemble.encode([PAIRS[0][0]])
    written = ensemble.generate(**inputs, do_sample=False, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
    assert texts[0] == ensemble.tokenizer.decode(written, skip_special_tokens=True).split("\n")[0]


def test_greedy_continuations_are_known(llama_folder: str) -> None:
    ensemble = ensemble_of([LoadedMember(*load(llama_folder))])
    context = ensemble.ids("The quick")
    written = ensemble.generate(torch.tensor([context]), do_sample=False, max_new_tokens=3)[0, len(context) :].tolist()
    answer = HarnessModel(ensemble)._loglikelihood_tokens([(None, context, written), (None, context, [5, 6])])
    assert [greedy for _, greedy in answer] == [True, False]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with a multiple-choice task over local questions."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    lines = [
        {"question": f"The quick brown fox {k}", "choices": [" jumps", " 12345"], "answer": k % 2} for k in range(4)
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "foxes.yaml").write_text(
        f"""task: foxes
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "questions.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""
    )
    return folder


def test_a_local_task_is_evaluated(llama_folder: str, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tasks / "cache"))
    (alone,) = evaluate([llama_folder], ["foxes"], task_folder=tasks)
    assert alone["results"]["foxes"]["acc,none"] in (0, 0.25, 0.5, 0.75, 1)
    file = tasks.parent / "twice.yaml"
    copied = shutil.copytree(llama_folder, tasks.parent / "copy")
    file.write_text(f"members: [{{model: {llama_folder}}}, {{model: {copied}, weight: 2}}]\n")
    (twice,) = evaluate([str(file)], ["foxes"], task_folder=tasks, batch_size=3)
    assert twice["results"]["foxes"]["acc,none"] == alone["results"]["foxes"]["acc,none"]


def test_a_metric_that_is_nan_is_said_and_null_in_json(
    llama_folder: str, tasks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tasks / "nan.py").write_text("def results(doc, answers):\n    return {'acc': float('nan')}\n")
    (tasks / "foxes.yaml").write_text((tasks / "foxes.yaml").read_text() + "process_results: !function nan.results\n")
    (found,) = evaluate([llama_folder], ["foxes"], task_folder=tasks)
    assert f"{llama_folder}: foxes acc is nan" in caplog.text
    assert json.loads(json_results(found))["foxes"]["acc,none"] is None


@pytest.mark.bad_input
def test_a_task_whose_template_fails_is_one_sentence(llama_folder: str, tasks: Path) -> None:
    (tasks / "foxes.yaml").write_text((tasks / "foxes.yaml").read_text().replace("{{question}}", "{{question / 0}}"))
    with pytest.raises(UserError, match=r"lm_eval cannot (evaluate|load) foxes: ") as caught:
        list(evaluate([llama_folder], ["foxes"], task_folder=tasks))
    assert "\n" not in str(caught.value)


def test_tasks_that_cannot_be_loaded_are_refused(llama_folder: str, tasks: Path) -> None:
    with pytest.raises(UserError, match="tasks no_such_task: lm_eval has no such task"):
        list(evaluate([llama_folder], ["no_such_task"], task_folder=tasks))
    (tasks / "foxes.yaml").write_text((tasks / "foxes.yaml").read_text().replace("questions.jsonl", "gone.jsonl"))
    with pytest.raises(UserError, match=r"lm_eval cannot load foxes: .*gone\.jsonl"):
        list(evaluate([llama_folder], ["foxes"], task_folder=tasks))


@pytest.mark.bad_input
def test_a_model_that_is_missing_is_known_before_the_first_is_evaluated(
    llama_folder: str, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelReference, "load", None)
    with pytest.raises(UserError, match=r"^/nowhere: "):
        next(evaluate([llama_folder, "/nowhere"], ["foxes"], task_folder=tasks))


def test_batches_of_an_unknown_size_are_refused(llama_folder: str) -> None:
    with pytest.raises(UserError, match="batch_size"):
        HarnessModel(ensemble_of([LoadedMember(*load(llama_folder))]), batch_size="auto")
