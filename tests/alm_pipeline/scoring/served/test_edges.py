"""What could give wrong scores without a word: each is right, or refused with a sentence that names server and fix."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alm_pipeline.models.loaded_files import ADAPTER, is_peft_available
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.scoring.served.vocabulary import ServedVocabulary
from alm_pipeline.scoring.served_scorer import check_servers
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.scoring.served.scorers import assert_same, encoded, scorer, served_config
from tests.alm_pipeline.scoring.served.small_server import Handler, SmallServer, refuses, running

pytestmark = pytest.mark.bad_input
BY_STATES = {"hidden_states": True, "head_device": "cpu"}
WAYS = pytest.mark.parametrize("way", [{}, BY_STATES], ids=["plugin", "hidden states"])
PROBES = pytest.mark.parametrize("probe", ["reference", "windows"])


@pytest.fixture
def stranger(tmp_path: Path) -> ModelReference:
    """Another revision: the teacher's tokenizer and shape, other weights."""
    tokenizer = tiny.byte_level_tokenizer()
    model = tiny.tiny_llama(len(tokenizer))
    for weight in model.parameters():
        weight.data *= 1.1
    return ModelReference(tiny.save(tmp_path / "revisions" / "tiny-llama", model, tokenizer))


@contextmanager
def two_servers(one: SmallServer, two: SmallServer) -> Iterator[tuple[str, str]]:
    with running(one) as first, running(two) as second:
        yield first, second


@WAYS
@PROBES
def test_a_second_server_with_another_revision_is_refused(
    teacher: ModelReference, stranger: ModelReference, tmp_path: Path, way: dict[str, Any], probe: str
) -> None:
    """Each server is probed by itself, however few rows it would have got."""
    vocabulary = ServedVocabulary.of(teacher)
    with two_servers(SmallServer(teacher, tmp_path), SmallServer(stranger, tmp_path, vocabulary)) as (one, two):
        config = served_config(one, two, served={"in_flight": 1, "probe": probe, **way})
        other = "this project's own scores" if probe == "reference" else f"those of {one}"
        with pytest.raises(UserError, match=rf"^{two}: its scores of a few texts differ from {other}"):
            scorer(teacher, config).__enter__()


@WAYS
def test_a_server_that_comes_back_with_another_revision_is_refused_after_the_shard(
    teacher: ModelReference, stranger: ModelReference, tmp_path: Path, way: dict[str, Any]
) -> None:
    server = SmallServer(teacher, tmp_path)
    with running(server) as url, scorer(teacher, served_config(url, served=way)) as served:
        served.score(encoded(teacher))
        server.model = stranger.load("float32", device="cpu").eval()
        with pytest.raises(UserError, match=rf"^{url}: .* its own before the run .*started again with another model"):
            served.score(encoded(teacher))


def test_a_server_that_is_gone_after_its_rows_does_not_end_a_run_with_others(
    teacher: ModelReference, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(SmallServer(teacher, tmp_path)) as one:
        leaving = SmallServer(teacher, tmp_path)
        with running(leaving) as two:
            opened = scorer(teacher, served_config(one, two, served={"in_flight": 1, "wait": 1.0}))
            served = opened.__enter__()
            unbroken = served.score(encoded(teacher))

            def leave(_: Handler, answer: dict[str, Any]) -> dict[str, Any] | None:
                leaving.always = refuses(503)
                return answer

            leaving.always = leave
            assert_same(served.score(encoded(teacher)), unbroken, 0)
        opened.__exit__(None, None, None)
    assert "its scores could not be compared again after its last rows" in caplog.text


@WAYS
def test_an_adapter_on_the_server_is_refused(
    small_server: SmallServer, address: str, teacher: ModelReference, way: dict[str, Any]
) -> None:
    """Also where its name is the one that is asked for."""
    small_server.parent = "base"
    with pytest.raises(UserError, match=rf"{address}: serves teacher as an adapter of base.*merge_and_unload"):
        scorer(teacher, served_config(address, served={"model": "teacher", "probe": "windows", **way})).__enter__()


@pytest.mark.skipif(not is_peft_available(), reason="without peft no adapter is loaded here either")
@WAYS
def test_a_teacher_with_an_adapter_is_refused(tmp_path: Path, way: dict[str, Any]) -> None:
    """transformers loads it on top of the model, and a server does not."""
    tokenizer = tiny.byte_level_tokenizer()
    folder = tiny.save(tmp_path / "adapted", tiny.tiny_llama(len(tokenizer)), tokenizer)
    Path(folder, ADAPTER).write_text("{}")
    teacher = ModelReference(folder)
    for opened in (
        lambda: scorer(teacher, served_config("http://127.0.0.1:9", served={"probe": "windows", **way})).__enter__(),
        lambda: check_servers(teacher, served_config("http://127.0.0.1:9", served=way), 0.1),
    ):
        with pytest.raises(UserError, match=r"contains an adapter .* and a server does not: merge it"):
            opened()


@WAYS
def test_prefix_caching_is_refused(
    small_server: SmallServer, address: str, teacher: ModelReference, way: dict[str, Any]
) -> None:
    small_server.prefix_caching = True
    with pytest.raises(UserError, match=r"caches prefixes.*--no-enable-prefix-caching"):
        scorer(teacher, served_config(address, served=way)).__enter__()


@WAYS
def test_a_server_of_the_other_kind_is_refused(
    small_server: SmallServer, address: str, teacher: ModelReference, way: dict[str, Any]
) -> None:
    """One in pooling mode has no completions, and one with the plugin no pooling."""
    small_server.paths = ("/v1/completions",) if way else ("/pooling",)
    fix = "set score.served.hidden_states to false" if way else "set score.served.hidden_states to true"
    with pytest.raises(UserError, match=rf"{address}: .* answers 404: .*{fix}"):
        scorer(teacher, served_config(address, served=way)).__enter__()


def test_a_tokenizer_with_another_added_token_is_refused(teacher: ModelReference, tmp_path: Path) -> None:
    """Ids are the same as far as both have them; but the server's file knows one token less."""
    tokenizer = tiny.byte_level_tokenizer()
    plain = tiny.save(tmp_path / "plain", tiny.tiny_llama(len(tokenizer) + 8), tokenizer)
    tokenizer.add_tokens(["<tool>"])
    added = tiny.save(tmp_path / "added", tiny.tiny_llama(len(tokenizer) + 7), tokenizer)
    teachers = [ModelReference(folder) for folder in (plain, added)]
    for served, named in (teachers, teachers[::-1]):
        with running(SmallServer(served, tmp_path)) as url:
            with pytest.raises(UserError, match="serves another vocabulary or other boundary tokens"):
                scorer(named, served_config(url)).__enter__()
            with scorer(served, served_config(url)) as right:
                expected = Scorer.load(served, served_config(url), "cpu").score(encoded(served))
                assert_same(right.score(encoded(served)), expected)


def quantized(teacher: ModelReference, folder: Path) -> ModelReference:
    """The teacher's files, said to be quantized."""
    tokenizer = tiny.byte_level_tokenizer()
    made = Path(tiny.save(folder / "quantized", tiny.tiny_llama(len(tokenizer)), tokenizer))
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq", "bits": 4}}))
    return ModelReference(str(made))


def test_a_whole_model_in_place_of_a_quantized_teacher_is_refused(teacher: ModelReference, tmp_path: Path) -> None:
    """The server says how it quantizes: with none, it is not these files."""
    named = quantized(teacher, tmp_path)
    server = SmallServer(teacher, tmp_path, ServedVocabulary.of(named))
    with running(server) as url:
        config = served_config(url, served={"model": "teacher"})
        with pytest.raises(UserError, match=r"without quantization, and the teacher's files are quantized \(awq\)"):
            scorer(named, config).__enter__()
        server.quantization = "awq_marlin"
        with scorer(named, config) as served:
            assert served.description == "vllm 0.32.0, float32, quantization awq_marlin"


def test_a_quantized_model_in_place_of_a_whole_teacher_is_refused_by_states_too(
    teacher: ModelReference, tmp_path: Path
) -> None:
    """No answer says it there, but the scores are not the teacher's."""
    server = SmallServer(teacher, tmp_path)
    for weight in server.model.model.layers.parameters():
        weight.data = (weight * 8).round() / 8
    with running(server) as url, pytest.raises(UserError, match="differ from this project's own scores"):
        scorer(teacher, served_config(url, served=BY_STATES)).__enter__()


def test_a_second_sglang_server_with_another_dtype_is_refused(teacher: ModelReference, tmp_path: Path) -> None:
    servers = SmallServer(teacher, tmp_path), SmallServer(teacher, tmp_path)
    servers[1].dtype = "bfloat16"
    with two_servers(*servers) as (one, two):
        config = served_config(one, two, engine="sglang")
        with pytest.raises(UserError, match=f"{two}: serves the teacher in bfloat16.*unlike the first answer"):
            scorer(teacher, config).__enter__()


@WAYS
def test_windows_of_a_server_with_a_shorter_context_are_refused_or_right(
    small_server: SmallServer, address: str, teacher: ModelReference, way: dict[str, Any]
) -> None:
    """A long text is never cut: it is refused, or scored in windows that fit."""
    text = np.concatenate(encoded(teacher))[:120].astype(np.int32)
    small_server.longest = 65
    with (
        scorer(teacher, served_config(address, served=way)) as served,
        pytest.raises(UserError, match=r"example long: has 120 tokens.*takes at most 6[45]"),
    ):
        served.score([text], names=["long"])
    config = served_config(address, window=64, served=way)
    with scorer(teacher, config) as served:
        expected = Scorer.load(teacher, replace_engine(config), "cpu").score([text])
        assert_same(served.score([text]), expected)
    assert max(map(len, small_server.asked)) <= 65


def replace_engine(config: Any) -> Any:
    return config.model_copy(update={"engine": "transformers"})
