"""Servers and engines that return hidden states, whose scores this project's own head computes."""

import base64
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM, PreTrainedModel

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.scoring.hidden_states import HeadReader
from alm_pipeline.scoring.scorer import Scorer
from alm_pipeline.scoring.served.client import Client
from alm_pipeline.scoring.served.replies import WrongReply
from alm_pipeline.scoring.served.server import server_arguments, server_environment
from alm_pipeline.scoring.served.states import StatesReader
from alm_pipeline.scoring.served.wire import PoolingApi
from alm_pipeline.scoring.served_scorer import check_servers
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.scoring.served.scorers import assert_same, encoded, scorer, served_config
from tests.alm_pipeline.scoring.served.small_server import Fault, Handler, SmallServer, running

SHAPE = {**tiny.SIZES, "initializer_range": 0.2}


def cohere(vocabulary: int) -> PreTrainedModel:
    """Logits times a scale."""
    torch.manual_seed(4)
    return CohereForCausalLM(CohereConfig(vocab_size=vocabulary, logit_scale=0.25, **SHAPE))


def granite(vocabulary: int) -> PreTrainedModel:
    """Logits divided by a number."""
    torch.manual_seed(5)
    return GraniteForCausalLM(GraniteConfig(vocab_size=vocabulary, logits_scaling=3.0, **SHAPE))


def untied(vocabulary: int) -> PreTrainedModel:
    return tiny.tiny_llama(vocabulary, tied=False)


MODELS = {
    "llama": tiny.tiny_llama,
    "untied": untied,
    "gpt2": tiny.tiny_gpt2,
    "qwen": tiny.tiny_qwen,
    "gemma": tiny.tiny_gemma,  # a soft cap
    "cohere": cohere,
    "granite": granite,
}


def saved(folder: Path, kind: str, padding: int = 13) -> ModelReference:
    """A teacher whose head has more rows than there are tokens."""
    tokenizer = tiny.byte_level_tokenizer()
    return ModelReference(tiny.save(folder / kind, MODELS[kind](len(tokenizer) + padding), tokenizer))


def by_states(url: str, **settings: Any) -> ScoreConfig:
    served = {"hidden_states": True, "head_device": "cpu", **settings.pop("served", {})}
    return served_config(url, served=served, **settings)


@pytest.mark.parametrize("is_by_states", [False, True], ids=["plugin", "hidden states"])
@pytest.mark.parametrize("kind", MODELS)
def test_scores_are_those_of_transformers(kind: str, is_by_states: bool, tmp_path: Path) -> None:
    """Whatever the model does to its logits, with the plugin and with the project's own head; in windows; top-k."""
    teacher = saved(tmp_path, kind)
    texts, settings = encoded(teacher), {"window": 40, "context": 9, "top_k": 3}
    with running(SmallServer(teacher, tmp_path)) as url:
        config = by_states(url, **settings) if is_by_states else served_config(url, **settings)
        with scorer(teacher, config) as served:
            found = served.score(texts)
    expected = Scorer.load(teacher, ScoreConfig(dtype="float32", **settings)).score(texts)
    assert_same(found, expected)
    if is_by_states:
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours.top_logprobs, theirs.top_logprobs, atol=3e-5)


def said_to_be_quantized(teacher: ModelReference) -> None:
    file = Path(teacher.name, "config.json")
    quantized = '"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128},'
    file.write_text(file.read_text().replace("{", "{" + quantized, 1))


def test_a_quantized_model_has_a_head_of_real_numbers(tmp_path: Path) -> None:
    """Only what is stored quantized needs the package that quantized it: here nothing of the head."""
    teacher = saved(tmp_path, "untied")
    expected = teacher.load("float32", device="cpu").get_output_embeddings().weight
    said_to_be_quantized(teacher)
    again = ModelReference(teacher.name)
    assert torch.equal(again.load_head("float32", device="cpu").get_output_embeddings().weight, expected)


@pytest.mark.bad_input
def test_a_head_that_is_quantized_too_is_refused(tmp_path: Path) -> None:
    teacher = saved(tmp_path, "untied")
    said_to_be_quantized(teacher)
    file = Path(teacher.name, "model.safetensors")
    tensors = load_file(file)
    tensors["lm_head.qweight"] = tensors.pop("lm_head.weight").to(torch.int32)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"its head is quantized too \(lm_head\.weight .*use the plugin alm-scores"):
        HeadReader.load(ModelReference(teacher.name), by_states("http://10.0.0.5:8000"))


def test_the_dtype_shows_in_the_numbers_and_is_compared(tmp_path: Path) -> None:
    teacher = saved(tmp_path, "llama")
    server = SmallServer(teacher, tmp_path)
    states = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    for dtype in ("float32", "bfloat16", "float16"):
        numbers = states.to(getattr(torch, dtype)).float().numpy()
        assert StatesReader().read(range(9), numbers)[1].dtype == dtype
    with running(server) as url:
        server.dtype = "bfloat16"
        with pytest.raises(UserError, match=r"in bfloat16, and score\.dtype is float32"):
            scorer(teacher, by_states(url)).__enter__()
        with scorer(teacher, by_states(url, dtype="bfloat16")) as served:
            found = served.score(encoded(teacher))
            assert served.description == "vllm 0.32.0 by hidden states, bfloat16, quantization unknown"
    expected = Scorer.load(teacher, ScoreConfig(dtype="bfloat16"), "cpu").score(encoded(teacher))
    assert_same(found, expected, 0.2)


def changed_states(change: Any) -> Fault:
    """A fault that changes the hidden states [T, 32] of an answer."""

    def fault(_: Handler, answer: dict[str, Any]) -> dict[str, Any]:
        (row,) = answer["data"]
        states_TH = np.frombuffer(base64.b64decode(row["data"]), "<f4").reshape(-1, 32).copy()
        row["data"] = base64.b64encode(np.ascontiguousarray(change(states_TH), "<f4").tobytes()).decode()
        return answer

    return fault


def with_nan(states_TH: np.ndarray) -> np.ndarray:
    states_TH[2, 5] = np.nan
    return states_TH


def counts(tokens: int) -> Fault:
    def fault(_: Handler, answer: dict[str, Any]) -> dict[str, Any]:
        answer["usage"]["prompt_tokens"] += tokens
        return answer

    return fault


WRONG: dict[str, tuple[Fault, str]] = {
    "a token less": (changed_states(lambda states: states[1:]), "160 numbers for 6 tokens.*it cut or padded the text"),
    "twice as many": (changed_states(lambda states: np.concatenate([states, states])), "6 × 64 numbers, and the teac"),
    "half of each state": (changed_states(lambda states: states[:, :16]), "has 6 × 16 numbers, and the teacher 6 × 32"),
    "cut by the server": (counts(-1), "numbers for 5 tokens, and was asked for 6 tokens: it cut or padded"),
    "padded by the server": (counts(2), "numbers for 8 tokens, and was asked for 6 tokens: it cut or padded"),
    "NaN": (changed_states(with_nan), "the hidden state of token 2 is NaN or infinite"),
    "normalized": (
        changed_states(lambda states: states / np.linalg.norm(states, axis=-1, keepdims=True)),
        "has normalized hidden states, all of length 1",
    ),
    "no base64": (lambda _, answer: {**answer, "data": [{"data": [[0.5]]}]}, "is not of the form of vLLM's /pooling"),
    "another form": (lambda _, answer: {"object": "error"}, "is not of the form of vLLM's /pooling: KeyError: 'data'"),
}


@pytest.mark.parametrize(("fault", "problem"), WRONG.values(), ids=WRONG)
@pytest.mark.bad_input
def test_an_answer_that_cannot_be_true_is_refused(
    small_server: SmallServer, address: str, teacher: ModelReference, fault: Fault, problem: str
) -> None:
    with scorer(teacher, by_states(address)) as served:
        small_server.always = fault
        with pytest.raises(UserError, match=problem) as raised:
            served.score([np.arange(10, 16, dtype=np.int32)], names=["one of mine"])
    assert f"{address}: its answer for example one of mine" in str(raised.value)


@pytest.mark.parametrize("factor", [1 / 16, 16])
@pytest.mark.bad_input
def test_states_for_another_scale_are_refused_without_a_reference(
    small_server: SmallServer, address: str, teacher: ModelReference, factor: float
) -> None:
    """Such as those before the last norm. Where a whole teacher is at hand, it shows in the scores."""
    config = by_states(address, served={"probe": "windows"})
    with scorer(teacher, config) as served:
        assert len(served.score(encoded(teacher))) == len(tiny.TEXTS)
    small_server.always = changed_states(lambda states: states * factor)
    if factor > 1:  # an untrained model's texts are not less likely if all tokens become equally likely
        with pytest.raises(UserError, match=r"multiplied by 0\.25 the probe's texts are likelier by .* nats per token"):
            scorer(teacher, config).__enter__()
    with pytest.raises(UserError, match="differ from this project's own scores"):
        scorer(teacher, by_states(address)).__enter__()


@pytest.mark.bad_input
def test_a_head_of_another_size_is_refused(tmp_path: Path, teacher: ModelReference) -> None:
    reader = HeadReader.load(teacher, by_states("http://10.0.0.5:8000"))
    with pytest.raises(WrongReply, match="has 3 × 31 numbers, and the teacher 3 × 32: it serves another model"):
        reader.read([1, 2, 3], np.zeros((3, 31), np.float32))


def test_servers_are_asked_without_the_head(small_server: SmallServer, address: str, teacher: ModelReference) -> None:
    check_servers(teacher, by_states(address, top_k=3), 3.0)
    assert len(small_server.asked) == 1


def test_answers_that_nobody_takes_are_not_collected(small_server: SmallServer, address: str) -> None:
    """States are large: no more answers are waiting than requests may be in flight."""
    config = by_states(address, served={"in_flight": 3}).served
    body = PoolingApi("teacher").body([5, 6, 7])
    with Client([address], config) as client:
        answers = client.answers("/pooling", 20, lambda _: body)
        next(answers)
        time.sleep(0.3)
        assert len(small_server.asked) <= 4
        assert len(list(answers)) == 19


def test_a_text_as_long_as_the_server_s_context_fits(
    small_server: SmallServer, address: str, teacher: ModelReference
) -> None:
    """No token is generated, unlike with the plugin."""
    small_server.longest = 100
    with scorer(teacher, by_states(address)) as served:
        served.score([np.arange(10, 110, dtype=np.int32)])
        with pytest.raises(UserError, match=r"example mine: has 101 tokens.*a context of 512.*score\.window to 100"):
            served.score([np.arange(10, 111, dtype=np.int32)], names=["mine"])


def test_the_arguments_are_those_of_a_pooling_server(teacher: ModelReference, tmp_path: Path) -> None:
    config = ScoreConfig.model_validate({"engine": "http", "served": {"hidden_states": True}})
    found = " ".join(server_arguments(teacher, config))
    assert found == (
        f"{teacher.name} --served-model-name tiny-llama --dtype bfloat16 --max-model-len 512 --runner pooling "
        '--convert embed --pooler-config {"task":"token_embed","use_activation":false} --no-enable-prefix-caching'
    )
    assert "ALM_SCORES_FILE" not in server_environment(config, tmp_path / "file.json")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"served": {"hidden_states": True}}, "only vLLM returns hidden states, and the engine is transformers"),
        ({"engine": "sglang", "served": {"hidden_states": True, "urls": ["http://a:1"]}}, "the engine is sglang"),
        ({"engine": "http", "served": {"head_device": "cpu"}}, "without served.hidden_states, the engine computes"),
    ],
)
@pytest.mark.bad_input
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ScoreConfig.model_validate(settings)


def test_they_change_no_name(teacher: ModelReference) -> None:
    config = ScoreConfig.model_validate({"engine": "http", "served": {"hidden_states": True}})
    assert config.identity() == ScoreConfig().identity()
    assert by_states("http://10.0.0.5:8000").asks_other_machines is False
