"""The plugin's arithmetic against float64, what it refuses, and vLLM's own class where vLLM is installed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alm_scores import encoding, sglang_plugin, vllm_plugin
from alm_scores.encoding import COARSE_UNIT, DTYPES, LEAST, QUANTIZATIONS, UNIT, Encoder, coarse_code, code
from alm_scores.file import PluginError, ServedVocabulary, content_hash, read_file, served_vocabulary
from alm_scores.wrapping import check_parameters
from hypothesis import given, settings
from hypothesis import strategies as st

ROWS, WIDTH = 37, 41
VOCABULARY = ServedVocabulary(ROWS, WIDTH, (0, 3, 5, 30, 36), (40, 39, 7), "beef" * 16)


class LogitsProcessor(torch.nn.Module):
    """As vLLM's: the product with the head's weight, cut to the model's vocabulary."""

    def forward(self, lm_head: Any, hidden_states: Any, embedding_bias: Any = None, skip_gather: bool = False) -> Any:
        return (hidden_states @ lm_head.T)[..., :WIDTH]


class OnAnotherRank(LogitsProcessor):
    def forward(self, lm_head: Any, hidden_states: Any, embedding_bias: Any = None, skip_gather: bool = False) -> Any:
        return None


def written(tmp_path: Path, **changes: Any) -> Path:
    content = {"format": 1, "model": "m", "tokenizer": "t", "rows": ROWS, "width": WIDTH, "boundary_ids": [0, 3]}
    content |= {"carriers": [40, 39, 7]} | changes
    file = tmp_path / "alm-scores.json"
    file.write_text(json.dumps({"hash": content_hash(content)} | content))
    return file


def expected(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log p of each token and log P(boundary) in float64, from their definition."""
    z = logits.astype(np.float64)[:, :ROWS]
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return np.log(p), np.log(p[:, list(VOCABULARY.boundary_ids)].sum(-1))


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 600]), st.sampled_from([0.1, 3.0, 12.0]))
@settings(max_examples=40, deadline=None)
def test_the_numbers_are_those_of_float64(seed: int, positions: int, scale: float) -> None:
    logits = np.random.default_rng(seed).normal(0, scale, (positions, WIDTH)).astype(np.float32)
    found = Encoder(VOCABULARY)(torch.from_numpy(logits.copy()), 0.25).numpy()
    logprobs, boundary = expected(logits)
    tokens = [id_ for id_ in range(ROWS) if id_ not in VOCABULARY.carriers]
    np.testing.assert_allclose(found[:, tokens], logprobs[:, tokens], rtol=3e-6, atol=3e-6)
    np.testing.assert_allclose(1 - found[:, 40], boundary, rtol=3e-6, atol=3e-6)
    assert (found[:, tokens] <= 0).all()
    assert (found[:, 39] == 0.25).all()
    assert (np.argsort(-found, -1, kind="stable")[:, :3] == [40, 39, 7]).all()


@pytest.mark.parametrize("elements", [1, WIDTH, 3 * WIDTH + 1, 2**21])
def test_pieces_change_nothing(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(11, WIDTH, generator=torch.Generator().manual_seed(1)) * 5
    whole = Encoder(VOCABULARY)(logits.clone(), 0.5)
    monkeypatch.setattr(encoding, "_PROCESSOR_PIECE_ELEMENTS", elements)
    assert torch.equal(Encoder(VOCABULARY)(logits.clone(), 0.5), whole)


@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0, 300.0])
def test_both_ways_to_normalize_give_the_numbers_of_float64(scale: float) -> None:
    """Also where a boundary has e^-40 to e^-500 and less, beside others that are certain."""
    z = np.random.default_rng(5).normal(0, scale, (200, ROWS)).astype(np.float32)
    ids_K = torch.tensor(VOCABULARY.boundary_ids)
    mask_V = torch.zeros(ROWS)
    mask_V[ids_K] = 1
    logprobs = z.astype(np.float64) - np.logaddexp.reduce(z.astype(np.float64), -1, keepdims=True)
    boundary = np.logaddexp.reduce(logprobs[:, list(VOCABULARY.boundary_ids)], -1)
    assert (boundary.min() < -100) == (scale > 30)
    for normalize in (encoding.normalize, lambda values, ids: encoding.normalize_in_cache(values, ids, mask_V)):
        found = torch.from_numpy(z.copy())
        found_boundary = normalize(found, ids_K).numpy()
        np.testing.assert_allclose(found.numpy(), logprobs, rtol=2e-6, atol=4e-6)
        np.testing.assert_allclose(found_boundary, boundary, rtol=2e-6, atol=4e-6)
        assert (found.numpy() <= 0).all()
        assert (found_boundary <= 0).all()


def test_a_certain_boundary_is_still_the_largest() -> None:
    logits = torch.full((2, WIDTH), -100.0)
    logits[0, 3] = 100.0  # certain, and a boundary
    logits[1, 4] = 100.0  # certain, and none: a boundary has e^-200
    found = Encoder(VOCABULARY)(logits, 0.5)
    assert found[0, 3] == 0
    assert found[0, 40] == 1
    assert found[1, 40] == pytest.approx(201 - np.log(5), rel=1e-6)
    assert (found.topk(3).indices == torch.tensor([40, 39, 7])).all()


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits = (torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0)) * 8).bfloat16()
    before = logits.clone()
    found = Encoder(VOCABULARY)(logits, 0.5)
    assert found.dtype == torch.float32
    assert torch.equal(logits, before)
    np.testing.assert_allclose(1 - found[:, 40].numpy(), expected(before.float().numpy())[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", QUANTIZATIONS)
def test_a_code_says_what_is_served_and_float32_holds_it(dtype: str, method: str) -> None:
    value = code(VOCABULARY, dtype, method)
    assert np.float32(value) == value
    assert LEAST < value <= 0.5
    number = int(value / UNIT) - 1
    assert (number >> 7, DTYPES[number >> 5 & 3], QUANTIZATIONS[number & 31]) == (0xBEEF, dtype, method)
    assert code(VOCABULARY, dtype, "made up") == code(VOCABULARY, dtype, "other")
    assert code(VOCABULARY, dtype, None) == code(VOCABULARY, dtype, "none")


def test_vllm_s_method_is_wrapped_once_and_other_ranks_return_nothing() -> None:
    class Ours(LogitsProcessor):
        forward = LogitsProcessor.forward

    vllm_plugin.wrap(Ours, VOCABULARY)
    once = Ours.forward
    vllm_plugin.wrap(Ours, VOCABULARY)
    assert Ours.forward is once
    head, states = torch.randn(WIDTH + 3, 8), torch.randn(5, 8)
    plain = (states @ head.T)[:, :WIDTH]
    processor = Ours.__new__(Ours)
    torch.nn.Module.__init__(processor)
    found = Ours.forward(processor, head, states)
    assert torch.equal(found, Encoder(VOCABULARY)(plain, code(VOCABULARY, "float32", "unknown")))
    vllm_plugin.wrap(OnAnotherRank, VOCABULARY)
    assert OnAnotherRank.forward(processor, head, states) is None


def test_a_layer_around_vllm_s_own_says_the_quantization_too() -> None:
    """With LoRA, vLLM calls the class's method with another layer, whose `base_layer` is the one that was built."""

    class Ours(LogitsProcessor):
        forward = LogitsProcessor.forward

    class Around(torch.nn.Module):
        def __init__(self, base_layer: torch.nn.Module) -> None:
            super().__init__()
            self.base_layer = base_layer

        def forward(self, *arguments: Any) -> Any:
            return type(self.base_layer).forward(self, *arguments)

    vllm_plugin.wrap(Ours, VOCABULARY)
    inner = Ours.__new__(Ours)
    torch.nn.Module.__init__(inner)
    inner._alm_quantization = "fp8"
    found = Around(inner)(torch.randn(WIDTH, 8), torch.randn(5, 8))
    assert (found[:, 39] == code(VOCABULARY, "float32", "fp8")).all()


def test_sglang_s_hook_encodes_what_the_method_returns() -> None:
    def get_logits(self: Any, hidden_states: Any, lm_head: Any, logits_metadata: Any) -> Any:
        return hidden_states @ lm_head.T

    states, head = torch.randn(5, 8), torch.randn(WIDTH, 8)
    found = sglang_plugin.around(VOCABULARY)(get_logits, None, states, head, logits_metadata=None)
    assert torch.equal(found, Encoder(VOCABULARY)(states @ head.T, coarse_code(VOCABULARY)))
    # SGLang takes the log-softmax of it: the third carrier's distance gives the sum back
    again = torch.log_softmax(found, -1)
    back = again - again[:, 7:8] + LEAST
    np.testing.assert_allclose(back[:, 40].numpy(), found[:, 40].numpy(), rtol=1e-6)
    assert (torch.round(back[:, 39] / COARSE_UNIT) - 1 == 0xBEEF >> 2).all()


def test_another_method_is_refused() -> None:
    class Changed(torch.nn.Module):
        def forward(self, hidden_states: Any, lm_head: Any) -> Any: ...

    with pytest.raises(PluginError, match=r"forward of this version of vLLM takes \(self, hidden_states, lm_head\)"):
        vllm_plugin.wrap(Changed, VOCABULARY)
    with pytest.raises(PluginError, match="has no method forward"):
        vllm_plugin.wrap(type("Empty", (), {}), VOCABULARY)

    def further(self: Any, one: Any) -> None: ...

    with pytest.raises(PluginError, match="install a version of SGLang"):
        check_parameters(further, ["self"], "SGLang")


def test_a_model_with_another_vocabulary_is_refused() -> None:
    with pytest.raises(PluginError, match="the model has 50 logits, and its file is of a model with 41"):
        Encoder(VOCABULARY)(torch.zeros(2, 50), 0.5)


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALM_SCORES_FILE", raising=False)
    assert served_vocabulary() is None
    vllm_plugin.register()
    sglang_plugin.register()


def test_a_missing_file_ends_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALM_SCORES_FILE", str(tmp_path / "missing.json"))
    for register in (vllm_plugin.register, sglang_plugin.register):
        with pytest.raises(SystemExit, match=r"missing\.json: can't be read.*alm serve MODEL --file"):
            register()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": 2}, "not a file of alm serve in format 1"),
        ({"hash": "00"}, "damaged or edited"),
        ({"rows": 42}, "42 tokens do not fit into 41 logits"),
        ({"boundary_ids": []}, "boundary_ids are not distinct ids"),
        ({"boundary_ids": [1, 1]}, "boundary_ids are not distinct ids"),
        ({"boundary_ids": [37]}, "boundary_ids are not distinct ids from 0 to 36"),
        ({"carriers": [1, 2]}, "carriers are not 3 distinct ids"),
        ({"carriers": [1, 2, 41]}, "carriers are not 3 distinct ids from 0 to 40"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(PluginError, match=problem):
        read_file(written(tmp_path, **changes))


def test_a_right_file_is_read(tmp_path: Path) -> None:
    found = read_file(written(tmp_path))
    assert (found.rows, found.width, found.boundary_ids, found.carriers) == (ROWS, WIDTH, (0, 3), (40, 39, 7))


def test_vllm_s_own_class_is_one_that_the_plugin_knows() -> None:
    module = pytest.importorskip("vllm.model_executor.layers.logits_processor", reason="vLLM is not installed here")
    check_parameters(module.LogitsProcessor.forward, vllm_plugin._PARAMETERS, "vLLM")
    vllm_plugin.wrap(module.LogitsProcessor, VOCABULARY)
