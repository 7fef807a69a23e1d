"""A real vLLM server (the build for processors) against transformers, killed in the middle, and with wrong settings."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.scoring import stage
from alm_pipeline.scoring.scorer import Scorer, TokenScores
from alm_pipeline.scoring.served.probes import TEXTS as PROBES
from alm_pipeline.scoring.served.vocabulary import ServedVocabulary
from alm_pipeline.scoring.served_scorer import open_served_scorer
from alm_pipeline.scoring.stage import score, scores_dataset
from alm_pipeline.tokenization.stage import tokenize, tokens_dataset
from storage.dataset import Dataset
from storage.errors import UserError
from tests import tiny
from tests.corpora import text_examples
from tests.served.environment import CLOSE, needs_vllm, run_python, set_variables
from tests.served.servers import DEMO, config, encoded, largest_difference, server, small_llama

pytestmark = needs_vllm
GUARD = "alm_pipeline.scoring.served.guard"
SHARDS = [[f"{text} {k}" * 3 for k, text in enumerate(tiny.TEXTS)], [], [*PROBES, "The fox.", "a"]]


@pytest.fixture(scope="module")
def smollm() -> Iterator[tuple[ModelReference, str]]:
    teacher = ModelReference(DEMO)
    with server(teacher) as url:
        yield teacher, url


@pytest.mark.parametrize("window", [None, 24])
def test_scores_are_those_of_transformers(smollm: tuple[ModelReference, str], window: int | None) -> None:
    """In three scripts, whole and in windows, with the likeliest tokens."""
    teacher, url = smollm
    settings = {"top_k": 5, "window": window}
    texts = encoded(teacher, [*PROBES, *tiny.TEXTS])
    with open_served_scorer(teacher, config(url, **settings)) as served:
        found = served.score(texts)
    expected = Scorer.load(teacher, ScoreConfig(dtype="float32", **settings), "cpu").score(texts)
    difference = largest_difference(found, expected)
    print(f"largest difference from transformers: {difference:.2g} nats")
    assert difference < CLOSE
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.top_logprobs, theirs.top_logprobs, atol=CLOSE)
        # equally likely tokens may be in another order
        assert (ours.top_ids == theirs.top_ids).mean() > 0.99


def test_vllm_in_this_process_gives_the_same(smollm: tuple[ModelReference, str], tmp_path: Path) -> None:
    teacher, url = smollm
    texts = encoded(teacher, list(PROBES))
    with open_served_scorer(teacher, config(url, top_k=5)) as served:
        expected = served.score(texts)
    script = tmp_path / "score.py"
    script.write_text(
        "import sys, numpy as np\n"
        "from alm_pipeline.config import ScoreConfig\n"
        "from alm_pipeline.models.reference import ModelReference\n"
        "from alm_pipeline.scoring.served_scorer import open_served_scorer\n"
        "if __name__ == '__main__':\n"
        "    texts = [np.array(ids, np.int32) for ids in eval(sys.argv[2])]\n"
        "    served = {'arguments': ['--enforce-eager']}\n"
        "    config = ScoreConfig(engine='vllm', dtype='float32', top_k=5, window=512, served=served)\n"
        "    with open_served_scorer(ModelReference(sys.argv[1]), config) as scorer:\n"
        "        scores = scorer.score(texts)\n"
        "    print('SCORES', [[part.tolist() for part in row] for row in scores])\n"
    )
    printed = run_python([str(script), DEMO, str([ids.tolist() for ids in texts])])
    line = next(line for line in printed.splitlines() if "SCORES" in line)
    rows = json.loads(line.partition("SCORES ")[2].replace("nan", "NaN"))
    found = [TokenScores(*(np.array(part) for part in row)) for row in rows]
    assert largest_difference(found, expected) < CLOSE


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    teacher = ModelReference(DEMO)
    examples = text_examples(tmp_path_factory.mktemp("texts"), SHARDS)
    made = tokens_dataset(examples, teacher.tokenizer, None)
    tokenize(examples, made, teacher.tokenizer, None)
    return made


def guards() -> set[psutil.Process]:
    return {child for child in psutil.Process().children() if GUARD in child.cmdline()}


def contents(dataset: Dataset) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(Path(dataset.url).iterdir())}


def test_a_server_that_is_killed_in_a_shard_and_started_again_changes_no_byte(
    tokens: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run starts the server itself; the kill takes its whole process group, but not the run."""
    set_variables(monkeypatch)
    teacher, settings = ModelReference(DEMO), config(served={"in_flight": 2, "probe": "windows"})
    named = scores_dataset(tokens, teacher, settings)
    unbroken, broken = (replace(named, root=str(tmp_path / name)) for name in ("unbroken", "broken"))
    score(tokens, unbroken, teacher, settings)
    killed, others = threading.Event(), guards()
    score_shard = stage._score_shard

    def killing(*arguments: Any) -> None:
        *rest, advance = arguments

        def advance_and_kill(units: float, note: str = "") -> None:
            if not killed.is_set():
                killed.set()
                (guard,) = guards() - others
                os.killpg(guard.pid, signal.SIGKILL)
            advance(units, note)

        score_shard(*rest, advance_and_kill)  # type: ignore[call-arg]

    monkeypatch.setattr(stage, "_score_shard", killing)
    score(tokens, broken, teacher, settings)
    assert killed.is_set()
    assert contents(broken) == contents(unbroken)


def test_what_batches_do_to_floats(smollm: tuple[ModelReference, str]) -> None:
    """Rows alone and all at once: how far apart, and whether the rounded numbers that are stored are the same."""
    teacher, url = smollm
    texts = encoded(teacher, [*PROBES, *tiny.TEXTS] * 3)
    with ExitStack() as stack:
        one = stack.enter_context(open_served_scorer(teacher, config(url, served={"in_flight": 1})))
        many = stack.enter_context(open_served_scorer(teacher, config(url, served={"in_flight": 64})))
        alone, together = one.score(texts), many.score(texts)
    difference = largest_difference(together, alone)
    rounded = [
        (stage.round_mantissa(ours.logprobs[1:], 10), stage.round_mantissa(theirs.logprobs[1:], 10))
        for ours, theirs in zip(together, alone, strict=True)
    ]
    others = sum(int((ours != theirs).sum()) for ours, theirs in rounded)
    total = sum(len(ours) for ours, _ in rounded)
    print(f"largest difference between batches: {difference:.2g} nats; stored numbers that differ: {others} of {total}")
    assert difference < CLOSE


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ModelReference:
    return small_llama(tmp_path_factory.mktemp("small"), 0)


@pytest.fixture(scope="module")
def stranger(
    small: ModelReference, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ModelReference, ModelReference, str]]:
    """A teacher, and a server that serves another model with the teacher's vocabulary."""
    other = small_llama(tmp_path_factory.mktemp("stranger"), 1)
    teacher = small
    with server(other, ServedVocabulary.of(teacher)) as url:
        yield teacher, other, url


@pytest.mark.bad_input
def test_a_wrong_model_is_refused(stranger: tuple[ModelReference, ModelReference, str]) -> None:
    teacher, other, url = stranger
    with pytest.raises(UserError, match=r"differ from this project's own scores.*serves another model"):
        open_served_scorer(teacher, config(url)).__enter__()
    with open_served_scorer(other, config(url)) as served:  # it is the right one for itself
        texts = encoded(other, tiny.TEXTS)
        expected = Scorer.load(other, ScoreConfig(dtype="float32"), "cpu").score(texts)
        assert largest_difference(served.score(texts), expected) < CLOSE


@pytest.mark.bad_input
def test_a_wrong_tokenizer_is_refused(stranger: tuple[ModelReference, ModelReference, str], tmp_path: Path) -> None:
    _, _, url = stranger
    wrong = small_llama(tmp_path, 0, [f"other words {chr(97 + k % 26)}{chr(97 + k // 26)}" * 3 for k in range(400)])
    with pytest.raises(UserError, match=r"serves another vocabulary or other boundary tokens|no P\(boundary\)"):
        open_served_scorer(wrong, config(url)).__enter__()


@pytest.mark.bad_input
def test_a_server_without_the_plugin_or_with_prefix_caching_is_refused(
    small: ModelReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = small
    monkeypatch.setenv("VLLM_PLUGINS", "")  # none of the installed ones
    with server(teacher) as url, pytest.raises(UserError, match="the plugin alm-scores is not installed"):
        open_served_scorer(teacher, config(url)).__enter__()
    monkeypatch.delenv("VLLM_PLUGINS")
    with (
        server(teacher, arguments=("--enable-prefix-caching",)) as url,
        pytest.raises(UserError, match=r"caches prefixes.*--no-enable-prefix-caching"),
    ):
        open_served_scorer(teacher, config(url)).__enter__()


@pytest.mark.bad_input
def test_a_server_does_not_start_with_the_file_of_another_model(small: ModelReference) -> None:
    wider = replace(ServedVocabulary.of(small), width=5000)
    with pytest.raises(UserError, match=r"ended while it started: alm-scores: the model has \d+ logits"):
        server(small, wider).__enter__()


def test_the_plugin_s_own_tests_pass_beside_vllm() -> None:
    printed = run_python(["-m", "pytest", "-q", "-c", os.devnull, "plugins/alm-scores/tests"])
    assert "passed" in printed
    assert "skipped" not in printed
