"""The engines `http` and `sglang` against a small real server over a tiny model, and what they refuse."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alm_scores import encoding, file

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.scoring.served import replies
from alm_pipeline.scoring.served.vocabulary import ServedVocabulary
from alm_pipeline.scoring.stage import score, scores_dataset
from alm_pipeline.tokenization.stage import tokenize, tokens_dataset
from storage.dataset import Dataset
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.scoring.served.scorers import assert_same, encoded, scorer, served_config
from tests.alm_pipeline.scoring.served.small_server import (
    INFINITE,
    NAN,
    Fault,
    SmallServer,
    changes_ids,
    dies,
    forgets_a_token,
    is_slow,
    puts,
    puts_boundary,
    refuses,
    running,
    truncates,
)
from tests.corpora import text_examples

ENGINES = ("http", "sglang")
SHARDS = [[f"{text} {k}" for k, text in enumerate(tiny.TEXTS)], [], ["The fox.", "a", "dog " * 40]]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("folder", ["llama_folder", "gemma_folder"])
def test_scores_are_those_of_transformers(
    engine: str, folder: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In three scripts, in windows with a begin-of-text token before each, with the likeliest tokens."""
    teacher = ModelReference(request.getfixturevalue(folder))
    texts, vocabulary = encoded(teacher), ServedVocabulary.of(teacher)
    settings = {"window": 24, "context": 9, "dtype": "float32"}
    begins = [folder == "gemma_folder"] * len(texts)
    with (
        running(SmallServer(teacher, tmp_path)) as url,
        scorer(teacher, served_config(url, engine=engine, top_k=3, **settings)) as served,
    ):
        found = served.score([*texts, np.zeros(0, np.int32)], begins=[*begins, False])
    expected = Scorer.load(teacher, ScoreConfig(**settings, top_k=6)).score(texts, begins=begins)
    assert_same(found[:-1], expected)
    assert len(found[-1].logprobs) == 0
    for ours, theirs in zip(found, expected, strict=False):
        for k in range(len(ours.logprobs)):  # the plugin's ids are never among the likeliest
            kept = [(id_, value) for id_, value in zip(theirs.top_ids[k], theirs.top_logprobs[k], strict=True)]
            kept = [(id_, value) for id_, value in kept if id_ not in vocabulary.carriers][:3]
            assert ours.top_ids[k].tolist() == [id_ for id_, _ in kept]
            np.testing.assert_allclose(ours.top_logprobs[k], [value for _, value in kept], atol=3e-5)


def test_several_servers_share_the_rows_and_no_more_are_in_flight(teacher: ModelReference, tmp_path: Path) -> None:
    servers = [SmallServer(teacher, tmp_path) for _ in range(2)]
    for server in servers:
        server.always = lambda _, answer: (time.sleep(0.02), answer)[1]
    with (
        running(servers[0]) as one,
        running(servers[1]) as two,
        scorer(teacher, served_config(one, two, served={"in_flight": 3})) as served,
    ):
        done: list[float] = []
        texts = [np.array([k % 300 + 5, 7, 9], np.int32) for k in range(40)]
        served.score(texts, lambda units, note="": done.append(units))
        assert sum(done) == 120
    assert all(len(server.asked) >= 5 for server in servers)
    assert max(server.most_at_once for server in servers) <= 3


@pytest.mark.parametrize("fault", [dies, truncates, refuses(500), refuses(503), refuses(429), is_slow])
def test_what_goes_wrong_for_a_while_changes_nothing(
    small_server: SmallServer, address: str, teacher: ModelReference, fault: Fault
) -> None:
    texts = encoded(teacher)
    with scorer(teacher, served_config(address)) as served:
        unbroken = served.score(texts)
        first = len(small_server.asked)
        small_server.faults = {first + k: fault for k in (0, 2, 3)}
        again = served.score(texts)
    for one, two in zip(unbroken, again, strict=True):
        np.testing.assert_array_equal(one.logprobs, two.logprobs)
        np.testing.assert_array_equal(one.boundary_logprobs, two.boundary_logprobs)


def test_a_server_that_is_away_for_a_while_loses_nothing(teacher: ModelReference, tmp_path: Path) -> None:
    server = SmallServer(teacher, tmp_path)
    with running(server) as url:
        port = int(url.rsplit(":", 1)[1])
        opened = scorer(teacher, served_config(url))
        served = opened.__enter__()
        unbroken = served.score(encoded(teacher))

    def come_back() -> None:
        time.sleep(0.5)
        with running(server, port):
            assert finished.wait(20)

    finished = threading.Event()
    thread = threading.Thread(target=come_back)
    thread.start()
    try:
        assert_same(served.score(encoded(teacher)), unbroken, 0)
    finally:
        finished.set()
        thread.join()
        opened.__exit__(None, None, None)


def test_a_server_that_stays_away_is_named(teacher: ModelReference, tmp_path: Path) -> None:
    with running(SmallServer(teacher, tmp_path)) as url:
        pass
    with pytest.raises(UserError, match=rf"{url}: can't be reached .*: tried for 0\.3 s \(score\.served\.wait\)"):
        scorer(teacher, served_config(url, served={"wait": 0.3})).__enter__()


WRONG: list[tuple[Fault, str]] = [
    (puts(NAN), "log-probability of token 2 is NaN or infinite"),
    (puts(INFINITE), "log-probability of token 2 is NaN or infinite"),
    (puts(-9999.0), "log-probability of token 2 is NaN or infinite"),
    (puts(0.5), "the log-probability of token 2 is above 0"),
    (changes_ids, "repeats other ids than those that it was asked to score"),
    (forgets_a_token, "answers for 5 tokens, and was asked for 6"),
    (refuses(404), "answers 404: something went wrong"),
    (refuses(500), "answers 500: something went wrong: tried 5 times"),
    (truncates, "answers with damaged JSON: tried 5 times"),
    (lambda _, answer: {"choices": []}, "is not of the form of vLLM's /v1/completions: ValueError"),
    (lambda _, answer: {"object": "error"}, "is not of the form of vLLM's /v1/completions: KeyError: 'choices'"),
]


@pytest.mark.parametrize(("fault", "problem"), WRONG, ids=range(len(WRONG)))
@pytest.mark.bad_input
def test_an_answer_that_cannot_be_true_is_refused(
    small_server: SmallServer, address: str, teacher: ModelReference, fault: Fault, problem: str
) -> None:
    with scorer(teacher, served_config(address)) as served:
        small_server.always = fault
        with pytest.raises(UserError, match=problem) as raised:
            served.score([np.arange(10, 16, dtype=np.int32)], names=["one of mine"])
    assert address in str(raised.value)
    if "answers" not in problem and "damaged" not in problem:
        assert "its answer for example one of mine" in str(raised.value)


@pytest.mark.bad_input
def test_a_boundary_that_contradicts_a_token_is_refused(
    small_server: SmallServer, address: str, teacher: ModelReference
) -> None:
    ids = np.arange(10, 16, dtype=np.int32)
    carrier = ServedVocabulary.of(teacher).carriers[0]
    with scorer(teacher, served_config(address)) as served:
        for value, problem in ((0.5, r"P\(boundary\) after token 1 is above 1"), (0.0, "token 2 is likelier than all")):
            small_server.always = puts_boundary(value, carrier)
            with pytest.raises(UserError, match=problem):
                served.score([ids])


REFUSED: list[tuple[str, Callable[[SmallServer], None], dict[str, Any], str]] = [
    ("no plugin", lambda server: setattr(server, "has_plugin", False), {}, "the plugin alm-scores is not installed"),
    (
        "prefix caching",
        lambda server: setattr(server, "prefix_caching", True),
        {},
        "caches prefixes.*--no-enable-prefix-caching",
    ),
    ("dtype", lambda server: setattr(server, "dtype", "bfloat16"), {}, "in bfloat16, and score.dtype is float32"),
    (
        "quantization",
        lambda server: setattr(server, "quantization", "fp8"),
        {},
        r"quantizes the teacher \(fp8\).*score\.served\.quantization to fp8",
    ),
    (
        "other quantization",
        lambda server: None,
        {"quantization": "fp8"},
        "with quantization none, and score.served.quantization is fp8",
    ),
    ("name", lambda server: None, {"model": "other"}, "serves teacher: set score.served.model"),
    ("key", lambda server: setattr(server, "key", "secret"), {}, "answers 401.*ALM_SERVER_KEY"),
    (
        "another model",
        lambda server: setattr(server, "folder", "/models/other"),
        {"probe": "windows"},
        "serves /models/other",
    ),
]


@pytest.mark.parametrize(
    ("change", "served", "problem"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
@pytest.mark.bad_input
def test_a_server_that_serves_something_else_is_refused_before_the_run(
    small_server: SmallServer,
    address: str,
    teacher: ModelReference,
    change: Callable[[SmallServer], None],
    served: dict[str, Any],
    problem: str,
) -> None:
    change(small_server)
    with pytest.raises(UserError, match=problem):
        scorer(teacher, served_config(address, served=served)).__enter__()


def test_the_key_of_the_environment_is_sent(
    small_server: SmallServer, address: str, teacher: ModelReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_server.key = "secret"
    monkeypatch.setenv("ALM_SERVER_KEY", "secret")
    with scorer(teacher, served_config(address)) as served:
        assert len(served.score(encoded(teacher))) == len(tiny.TEXTS)


@pytest.mark.bad_input
def test_another_model_with_the_same_tokenizer_is_refused_by_its_numbers(
    teacher: ModelReference, tmp_path: Path
) -> None:
    tokenizer = tiny.byte_level_tokenizer()
    other = tiny.save(tmp_path / "other", tiny.tiny_llama(len(tokenizer), tied=False), tokenizer)
    server = SmallServer(ModelReference(other), tmp_path, ServedVocabulary.of(teacher))
    server.folder = teacher.name
    with running(server) as url, pytest.raises(UserError, match=r"differ from this project's own .*another model"):
        scorer(teacher, served_config(url)).__enter__()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.bad_input
def test_another_boundary_set_is_refused(teacher: ModelReference, tmp_path: Path, engine: str) -> None:
    vocabulary = ServedVocabulary.of(teacher)
    fewer = replace(vocabulary, boundary_ids=vocabulary.boundary_ids[:-1])
    with (
        running(SmallServer(teacher, tmp_path, fewer)) as url,
        pytest.raises(UserError, match="serves another vocabulary or other boundary tokens than those of tiny-llama"),
    ):
        scorer(teacher, served_config(url, engine=engine)).__enter__()


@pytest.mark.bad_input
def test_servers_that_differ_are_refused(teacher: ModelReference, tmp_path: Path) -> None:
    servers = [SmallServer(teacher, tmp_path) for _ in range(2)]
    with (
        running(servers[0]) as one,
        running(servers[1]) as two,
        scorer(teacher, served_config(one, two, served={"in_flight": 1})) as served,
    ):
        servers[1].dtype = "bfloat16"
        with pytest.raises(UserError, match=f"{two}: serves the teacher in bfloat16.*unlike the first answer"):
            served.score(encoded(teacher) * 4)


@pytest.mark.bad_input
def test_a_server_whose_numbers_depend_on_the_batch_is_refused(
    small_server: SmallServer, address: str, teacher: ModelReference
) -> None:
    def drift(_: Any, answer: dict[str, Any]) -> dict[str, Any]:
        (choice,) = answer["choices"]
        for ids, position in zip(choice["prompt_token_ids"][1:], choice["prompt_logprobs"][1:], strict=True):
            position[str(ids)]["logprob"] -= 0.01 * len(small_server.asked)
        return answer

    small_server.always = drift
    with pytest.raises(UserError, match=r"differ from its own in another batch.*depend on what else it computes"):
        scorer(teacher, served_config(address, served={"probe": "windows"})).__enter__()


@pytest.mark.bad_input
def test_a_text_that_uses_the_plugin_s_ids_is_refused(address: str, teacher: ModelReference) -> None:
    carrier = ServedVocabulary.of(teacher).carriers[1]
    with (
        scorer(teacher, served_config(address)) as served,
        pytest.raises(
            UserError, match=f"example mine: uses the token with the id {carrier}.*set score.engine to transformers"
        ),
    ):
        served.score([np.array([5, carrier, 6], np.int32)], names=["mine"])


@pytest.mark.bad_input
def test_a_text_that_is_too_long_for_the_server_is_refused(
    small_server: SmallServer, address: str, teacher: ModelReference, caplog: pytest.LogCaptureFixture
) -> None:
    small_server.longest = 101
    with scorer(teacher, served_config(address)) as served:
        assert "takes at most 100 tokens, and the teacher's windows have 512" in caplog.text
        served.score([np.arange(10, 110, dtype=np.int32)])
        with pytest.raises(UserError, match=r"example mine: has 101 tokens.*a context of 513.*score\.window to 100"):
            served.score([np.arange(10, 111, dtype=np.int32)], names=["mine"])
    with scorer(teacher, served_config(address, window=100)) as served:
        served.score([np.arange(10, 111, dtype=np.int32)])


def test_who_stops_the_progress_stops_waiting(
    small_server: SmallServer, address: str, teacher: ModelReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(units: float, note: str = "") -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("alm_pipeline.scoring.served.client._IDLE_S", 0.05)
    with scorer(teacher, served_config(address)) as served:
        small_server.always = lambda _, answer: (time.sleep(0.3), answer)[1]
        with pytest.raises(KeyboardInterrupt):
            served.score([np.arange(10, 16, dtype=np.int32)], stop)


@pytest.fixture
def tokens(tmp_path: Path, llama_folder: str) -> Dataset:
    examples = text_examples(tmp_path, SHARDS)
    made = tokens_dataset(examples, LoadedTokenizer(llama_folder), None)
    tokenize(examples, made, LoadedTokenizer(llama_folder), None)
    return made


def run(tokens: Dataset, root: Path, teacher: ModelReference, config: ScoreConfig) -> Dataset:
    made = replace(scores_dataset(tokens, teacher, config), root=str(root))
    score(tokens, made, teacher, config)
    return made


def test_a_run_that_is_stopped_in_a_shard_goes_on_to_the_same_bytes(
    tokens: Dataset, tmp_path: Path, small_server: SmallServer, address: str, teacher: ModelReference
) -> None:
    config = served_config(address)
    unbroken = run(tokens, tmp_path / "unbroken", teacher, config)
    small_server.requests = count()
    small_server.faults = {5: refuses(404)}  # in the first shard, after the probe's three
    with pytest.raises(UserError, match="answers 404"):
        run(tokens, tmp_path / "broken", teacher, config)
    broken = run(tokens, tmp_path / "broken", teacher, config)
    files = [{file.name: file.read_bytes() for file in Path(made.url).iterdir()} for made in (unbroken, broken)]
    assert files[0] == files[1]


def test_engines_write_one_dataset_and_the_manifest_names_them(
    tokens: Dataset, tmp_path: Path, address: str, teacher: ModelReference, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "alm_pipeline")
    config = served_config(address)
    served = run(tokens, tmp_path / "served", teacher, config)
    own = run(tokens, tmp_path / "own", teacher, ScoreConfig(dtype="float32"))
    assert served.name == own.name
    manifest, plain = served.complete_manifest(), own.complete_manifest()
    assert manifest.provenance["engines"] == ["vllm 0.32.0, float32, quantization none"]
    assert "engines" not in plain.provenance
    total = plain.counts["tokens"]
    assert manifest.counts == {"tokens": total, "tokens by vllm 0.32.0, float32, quantization none": total}
    for shard in range(len(SHARDS)):
        ours, theirs = served.read_shard(shard).to_pydict(), own.read_shard(shard).to_pydict()
        assert ours["id"] == theirs["id"]
        for one, two in zip(ours["boundary_logprobs"], theirs["boundary_logprobs"], strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-3)
    assert any(f"probe of {address}: differs" in record.message for record in caplog.records)


def test_a_quantization_on_loading_is_another_dataset(tokens: Dataset, teacher: ModelReference) -> None:
    def name(**settings: Any) -> str:
        return scores_dataset(tokens, teacher, ScoreConfig.model_validate(settings)).name

    url = {"urls": ["http://10.0.0.5:8000"]}
    plain = name()
    assert name(engine="http", served=url) == name(engine="vllm") == name(engine="sglang", served=url) == plain
    others = {name(engine="http", served={"quantization": method}) for method in ("fp8", "awq")}
    assert len({plain, *others}) == 3


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"engine": "sglang"}, "needs the address of a running server"),
        ({"served": {"urls": ["http://a:1"]}}, "the engine transformers asks no server"),
        ({"engine": "http", "served": {"urls": ["localhost:8000"]}}, "not the address of a server"),
        ({"engine": "http", "served": {"urls": ["http://u:p@a:1"]}}, "contains a password.*ALM_SERVER_KEY"),
        ({"engine": "http", "served": {"urls": ["http://a:1", "http://a:1/"]}}, "an address is named twice"),
        ({"engine": "http", "devices": ["cpu"]}, "are for the engine transformers"),
        ({"served": {"quantization": "fp8"}}, "loads a teacher as its files say"),
    ],
)
@pytest.mark.bad_input
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ScoreConfig.model_validate(settings)


def test_the_plugin_and_the_client_know_the_same_codes() -> None:
    assert replies.QUANTIZATIONS == encoding.QUANTIZATIONS
    vocabulary = file.ServedVocabulary(10, 10, (1,), (7, 8, 9), "beef" * 16)
    for dtype in ("float32", "bfloat16", "float16"):
        for method in encoding.QUANTIZATIONS:
            found = replies.decode_code(encoding.code(vocabulary, dtype, method))
            assert found == replies.Served(0xBEEF, dtype, method)
    assert replies.decode_coarse_code(encoding.coarse_code(vocabulary)) == replies.Served(
        0xBEEF >> 2, "unknown", "unknown"
    )
    for value in (0.0, -1.0, 1.0, 0.25 + 2.0**-26, NAN):
        assert replies.decode_code(value) is None
