"""The scores of choices, held to a model of float64 that scores one choice at a time, and to lm_eval's own."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from alm_pipeline.calibration.choices import ChoiceEncoder, EncodedQuestion
from alm_pipeline.calibration.packing import ChoiceScorer
from alm_pipeline.calibration.questions import Question, Questions, questions_dataset, store_questions
from alm_pipeline.calibration.scored_models import EnsembleOfModels, ModelsInTurn, model_named
from alm_pipeline.calibration.stage import ChoiceScoring, ScoredQuestions
from alm_pipeline.config import ScoreConfig
from alm_pipeline.ensemble.config import EnsembleConfig, MemberConfig, write_config
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.scoring.scorer import Scorer
from storage.dataset import Dataset
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.hypernetwork.networks import write_hypernetwork

QUESTIONS = [
    Question("plain", "The quick brown fox", (" jumps over", " 12345", " lazy dog. The"), 0, "plain"),
    Question("space", "How many did she sell? ", ("48", "24 + 24", "none of them"), 1, "space"),
    Question("line", "Natalia sold clips.\n", ("Natalia", "return left"), 1, "line"),
    Question("none", "", ("The quick", " brown", "fox jumps over"), 2, "none"),
    Question("unicode", "naïve café, 東京は:", (" 日本の首都です。", " é", " 🙂"), 0, "unicode"),
]


def dataset(root: Path, questions: list[Question] = QUESTIONS) -> Dataset:
    stored = questions_dataset(str(root), "some", questions)
    store_questions(stored, Questions(questions, {}))
    return stored


def scored(root: Path, name: str, questions: list[Question] = QUESTIONS) -> list[dict[str, object]]:
    scoring = ChoiceScoring(dataset(root, questions), model_named(name), "float32")
    with ModelsInTurn() as models:
        scoring.run(lambda: models.scorer(scoring.model))
    rows: list[dict[str, object]] = scoring.scores.read_shard(0).to_pylist()
    return rows


def one_by_one(folder: str, question: Question) -> list[float]:
    """The probability of each choice by a model of float64, without batches, and the tokens as lm_eval splits them."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    model.double().eval()
    prompt = question.prompt.rstrip()
    sums = []
    for choice in question.choices:
        text = question.prompt[len(prompt) :] + choice
        context = tokenizer(prompt).input_ids if prompt else []
        whole = tokenizer(prompt + text).input_ids
        context, rest = context or [tokenizer.bos_token_id], whole[len(context) :]
        if not prompt and whole[:1] == [tokenizer.bos_token_id]:
            rest = whole[1:]
        ids = torch.tensor([context + rest])
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(-1)
        places = range(len(context) - 1, ids.shape[1] - 1)
        sums.append(float(sum(logprobs[place, ids[0, place + 1]] for place in places)))
    return sums


@pytest.mark.parametrize("family", ["llama_folder", "gemma_folder"])
def test_choices_are_scored_as_one_by_one_in_float64_and_as_by_lm_eval(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(family)
    questions = QUESTIONS if family == "llama_folder" else QUESTIONS[:4]
    rows = scored(tmp_path, folder, questions)
    harness = HFLM(pretrained=folder, tokenizer=folder, device="cpu", batch_size=2, max_length=512)
    for question, row in zip(questions, rows, strict=True):
        assert row["logprobs"] == pytest.approx(one_by_one(folder, question), abs=1e-4)
        if question.prompt:  # lm_eval puts the begin-of-text token twice before a choice that has one of its own
            requests = [
                Instance("loglikelihood", {}, (question.prompt, choice), k) for k, choice in enumerate(question.choices)
            ]
            theirs = [logprob for logprob, _ in harness.loglikelihood(requests, disable_tqdm=True)]
            assert row["logprobs"] == pytest.approx(theirs, abs=1e-4)
        moved = len(question.prompt) - len(question.prompt.rstrip())
        assert row["byte_lengths"] == [len(choice.encode()) + moved for choice in question.choices]


def encoder(folder: str, length: int | None = 512) -> ChoiceEncoder:
    return ChoiceEncoder.of(LoadedTokenizer(folder), length)


def test_a_token_across_the_end_of_the_prompt_is_scored_with_all_choices(llama_folder: str) -> None:
    """`qu` + `ick` is one token of the text: then every choice is scored from the last common token on."""
    question = Question("x", "The qu", ("ick brown", "ack"), 0, "x")
    encoded = encoder(llama_folder).question(question)
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    wholes = [tokenizer("The qu" + choice).input_ids for choice in question.choices]
    context = tokenizer("The qu").input_ids
    shared = next(k for k in range(len(context)) if len({whole[k] for whole in [context, *wholes]}) > 1)
    assert encoded.straddled
    assert [choice.scored for choice in encoded.choices] == [len(whole) - shared for whole in wholes]
    covered = len(tokenizer.decode(context[:shared]).encode())
    sizes = [len(text) - covered for text in ("The quick brown", "The quack")]
    assert [choice.bytes for choice in encoded.choices] == sizes


@settings(deadline=None, max_examples=80)
@given(
    st.text("The quick fox 48é\n ", max_size=12), st.lists(st.text("aqui ck8é🙂", min_size=1), min_size=2, max_size=4)
)
def test_tokens_spell_the_text_and_sizes_add_up(prompt: str, choices: list[str]) -> None:
    question = Question("x", prompt, tuple(choices), 0, "x")
    encoded = ENCODER.question(question)
    if encoded.dropped:
        return
    for choice, text in zip(encoded.choices, choices, strict=True):
        ids = np.array([id_ for id_ in choice.ids if not VIEW.special[id_]], np.int32)
        assert VIEW.spell(ids) == (prompt + text).encode()
        assert choice.bytes == VIEW.lengths[np.array(choice.ids[-choice.scored :])].sum()
        assert choice.bytes >= len(text.encode())


_TOKENIZER = LoadedTokenizer.of(tiny.byte_level_tokenizer())
ENCODER, VIEW = ChoiceEncoder.of(_TOKENIZER, None), _TOKENIZER.view


def test_questions_that_do_not_fit_are_counted_and_the_others_scored(llama_folder: str, tmp_path: Path) -> None:
    long = QUESTIONS[0]._replace(id="long", prompt="The quick brown fox " * 200)
    stored = dataset(tmp_path, [*QUESTIONS, long])
    scoring = ChoiceScoring(stored, model_named(llama_folder), "float32")
    with ModelsInTurn() as models:
        manifest = scoring.run(lambda: models.scorer(scoring.model))
    assert manifest.dropped == {"over_context": 1}
    found = ScoredQuestions(stored, [scoring.scores])
    assert len(found) == len(QUESTIONS)
    assert found.left_out == {"over_context": 1}
    only = dataset(tmp_path / "only", [long])
    scoring = ChoiceScoring(only, model_named(llama_folder), "float32")
    with ModelsInTurn() as models:
        scoring.run(lambda: models.scorer(scoring.model))
    with pytest.raises(UserError, match=r"no question was scored by all models \(left out: \{'over_context': 1\}\)"):
        ScoredQuestions(only, [scoring.scores])


def test_an_ensemble_of_one_model_twice_scores_as_the_model(llama_folder: str, tmp_path: Path) -> None:
    copied = str(shutil.copytree(llama_folder, tmp_path / "copy"))
    members = (MemberConfig(model=llama_folder), MemberConfig(model=copied))
    file = write_config(EnsembleConfig(members=members), tmp_path)
    alone, twice = (scored(tmp_path, name) for name in (llama_folder, str(file)))
    for one, other in zip(alone, twice, strict=True):
        assert one["logprobs"] == pytest.approx(other["logprobs"], abs=1e-4)
        assert one["tokens"] == other["tokens"]


def test_shards_are_of_the_questions_and_scored_once(llama_folder: str, tmp_path: Path) -> None:
    many = [QUESTIONS[number % 5]._replace(id=str(number)) for number in range(1003)]
    stored = dataset(tmp_path, many)
    scoring = ChoiceScoring(stored, model_named(llama_folder), "float32")
    with ModelsInTurn() as models:
        scoring.run(lambda: models.scorer(scoring.model))
    assert [scoring.scores.read_shard(shard)["id"].to_pylist() for shard in range(2)] == [
        [question.id for question in many[:1000]],
        [question.id for question in many[1000:]],
    ]
    before = {file.name: file.read_bytes() for file in Path(scoring.scores.url).iterdir()}
    for name in ("manifest.json", "shard-00001.json", "shard-00001.parquet"):
        (Path(scoring.scores.url) / name).unlink()
    asked: list[int] = []
    again = ChoiceScoring(stored, model_named(llama_folder), "float32")
    with ModelsInTurn() as models:
        score = models.scorer(again.model)

        def counted(questions: Sequence[EncodedQuestion]) -> list[np.ndarray]:
            asked.append(len(questions))
            return score(questions)

        again.run(lambda: counted)
    assert asked == [3]
    assert {file.name: file.read_bytes() for file in Path(scoring.scores.url).iterdir()} == before
    assert json.loads(before["manifest.json"])["counts"]["choices"] == sum(len(each.choices) for each in many)


def packed_and_plain(folder: str, questions: list[Question]) -> tuple[ChoiceScorer, list[np.ndarray], list[np.ndarray]]:
    reference = ModelReference(folder)
    encoder = ChoiceEncoder.of(reference.tokenizer, reference.context_length)
    encoded = [encoder.question(question) for question in questions]
    scorer = Scorer.of(reference.load("float32"), reference.tokenizer, ScoreConfig(dtype="float32", batch_tokens=60))
    plain = ChoiceScorer(scorer)
    plain.is_packed = False
    packed = ChoiceScorer(scorer)
    return packed, packed(encoded), plain(encoded)


@pytest.mark.parametrize("family", ["llama_folder", "gemma_folder"])
def test_choices_beside_each_other_score_as_rows_of_their_own(family: str, request: pytest.FixtureRequest) -> None:
    short = [
        Question("one", "The quick", (" fox", "s", "\n"), 0, "one"),
        Question("two", "The", (" fox jumps", " quick brown", "m"), 0, "two"),
        Question("three", "Nat", ("alia sold", " 1", " of"), 0, "three"),
    ]
    questions = [*QUESTIONS, *short] if family == "llama_folder" else short[:2]
    scorer, packed, plain = packed_and_plain(request.getfixturevalue(family), questions)
    assert scorer.is_packed
    for one, other in zip(packed, plain, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_a_window_that_is_shorter_than_the_row_is_noticed(gemma_folder: str) -> None:
    """Half of the layers of the tiny Gemma see 16 tokens, and a mask of one's own replaces that."""
    question = Question(
        "x", "The quick brown fox jumps over the lazy dog. " * 4, (" The quick", " brown", " x"), 0, "x"
    )
    scorer, packed, plain = packed_and_plain(gemma_folder, [*QUESTIONS[:2], question])
    assert scorer.is_packed is False
    for one, other in zip(packed, plain, strict=True):
        assert one.tolist() == other.tolist()


def test_an_ensemble_with_another_hypernetwork_is_scored_again(
    llama_folder: str, gemma_folder: str, tmp_path: Path
) -> None:
    """Everything that a member is made of names its scores: each field changes them, or is listed as one that can't."""
    decides_nothing = {"device", "trust_remote_code", "template"}
    other = tiny.save(tmp_path / "other", tiny.tiny_gemma(600), tiny.sentencepiece_tokenizer(600))
    networks = [write_hypernetwork(tmp_path / name, gemma_folder, random=name == "b") for name in "ab"]
    member = MemberConfig(model=gemma_folder, tokenizer=llama_folder, hypernetwork=networks[0])
    changes: dict[str, object] = {
        "model": other,
        "tokenizer": other,
        "hypernetwork": networks[1],
        "weight": 0.5,
        "dtype": "bfloat16",
    }
    assert changes.keys() | decides_nothing == MemberConfig.model_fields.keys()
    members = [member, *(member.model_copy(update={name: value}) for name, value in changes.items())]
    found = [EnsembleOfModels("both.yaml", EnsembleConfig(members=(each,))).identity() for each in members]
    assert all(identity not in found[:number] for number, identity in enumerate(found))
