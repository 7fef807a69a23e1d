"""Every initialization, checked against loops in float64."""

import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.config import Method
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.new_tokenizer.trained import train_tokenizer
from alm_pipeline.transfer.composition import Composition, compose_rows
from alm_pipeline.transfer.focus import LENGTHS, focus
from alm_pipeline.transfer.focus_kernel import sparsemax_threshold
from alm_pipeline.transfer.fvt import map_vocabulary
from alm_pipeline.transfer.initialization import METHODS, Initialization, find_donor
from alm_pipeline.transfer.omp import omp
from alm_pipeline.transfer.swap import embedding_tables, swap_tokenizer
from storage.errors import UserError
from tests import tiny


def test_every_method_is_in_the_table() -> None:
    assert set(METHODS) == set(get_args(Method))
    assert {method for method, rule in METHODS.items() if rule.needs_donor} == {"omp"}


@pytest.fixture(scope="module")
def target(byte_level: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Another vocabulary: some tokens are the same, most are not."""
    return train_tokenizer([text[::-1] for text in tiny.TEXTS] + tiny.TEXTS[:1], 420, byte_level)


@pytest.fixture(scope="module")
def donor(target: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose own tokenizer is the target, wider than the source, and not tied."""
    torch.manual_seed(5)
    model = tiny.tiny_gpt2(len(target))
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.randn(len(target), 32))
    return tiny.save(tmp_path_factory.mktemp("donor"), model, target)


def with_bias(vocab_size: int, tied: bool) -> PreTrainedModel:
    """A model with more rows than tokens, and a bias in its head."""
    model = tiny.tiny_llama(vocab_size + 30, tied=tied)
    model.lm_head.bias = torch.nn.Parameter(torch.randn(vocab_size + 30))
    model.lm_head.bias.data[vocab_size:] = 1e6  # padding must not affect anything
    for table in embedding_tables(model):
        if not table.name.endswith("bias"):
            table.value.data[vocab_size:] = 1e6
    return model


def loops(table: torch.Tensor, composition: Composition, rows: int) -> list[list[float] | None]:
    """Row by row, in Python's floats; None for a draw."""
    made: list[list[float] | None] = []
    values = table.double().reshape(len(table), -1).tolist()
    for row in range(len(composition.copied)):
        terms = range(composition.starts[row], composition.starts[row + 1])
        width = range(len(values[0]))
        if len(terms):
            made.append([sum(values[composition.ids[t]][h] * composition.weights[t] for t in terms) for h in width])
        elif composition.fill == "mean":
            made.append([sum(values[k][h] for k in range(rows)) / rows for h in width])
        else:
            made.append(None)
    return made


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_a_models_tables_are_the_sums_that_the_method_says(
    method: Method, tied: bool, byte_level: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast, donor: str
) -> None:
    model = with_bias(len(byte_level), tied)
    before = {table.name: table.value.detach().clone() for table in embedding_tables(model)}
    assert set(before) == {"model.embed_tokens.weight", "lm_head.bias"} | (set() if tied else {"lm_head.weight"})
    setting = Initialization(method, ModelReference(donor) if method == "omp" else None, 3)
    transferred = swap_tokenizer(model, LoadedTokenizer.of(byte_level), LoadedTokenizer.of(target), setting)
    assert sum(transferred.counts().values()) == len(target) == model.config.vocab_size
    after = embedding_tables(model)
    assert [table.name for table in after] == list(before)
    for table in after:
        composition = transferred.compositions[-1 if table.of_head else 0]
        assert len(table.value) == len(target)
        expected = loops(before[table.name], composition, len(byte_level))
        for row, wanted in zip(table.value.detach().reshape(len(target), -1), expected, strict=True):
            if wanted is not None:
                torch.testing.assert_close(
                    row.double(), torch.tensor(wanted, dtype=torch.float64), atol=1e-4, rtol=1e-4
                )
        assert table.value.abs().max() < 100  # no row contains padding, which is a million


@pytest.mark.parametrize("method", METHODS)
def test_all_methods_copy_the_same_and_count_the_rest(
    method: Method, byte_level: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast, donor: str
) -> None:
    mapping = map_vocabulary(LoadedTokenizer.of(byte_level), LoadedTokenizer.of(target))
    new = len(target) - int(mapping.copied.sum())
    assert new > 50
    (composition,) = Initialization(method, ModelReference(donor) if method == "omp" else None).compositions(mapping, 1)
    for id_ in np.flatnonzero(mapping.copied):
        at = slice(composition.starts[id_], composition.starts[id_ + 1])
        assert (composition.ids[at].tolist(), composition.weights[at].tolist()) == ([mapping.pieces[id_][0]], [1.0])
    how = "drawn" if method == "random" else "composed"
    assert composition.counts() == {"copied": len(target) - new, how: new}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_a_model_moved_to_its_own_tokenizer_is_the_same(
    method: Method, tied: bool, byte_level: PreTrainedTokenizerFast, llama_folder: str
) -> None:
    model, moved = (tiny.tiny_llama(len(byte_level), tied=tied) for _ in range(2))
    setting = Initialization(method, ModelReference(llama_folder) if method == "omp" else None)
    tokenizer = LoadedTokenizer.of(byte_level)
    assert swap_tokenizer(moved, tokenizer, tokenizer, setting).counts() == {"copied": len(byte_level)}
    ids = torch.arange(20)[None]
    torch.testing.assert_close(moved(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=0)


def test_draws_depend_on_the_sources_distribution_and_the_seed() -> None:
    source = torch.randn(500, 40) * torch.linspace(0.1, 2, 40) + 3
    source[480:] = 1e6
    none: list[tuple[int, ...]] = [()] * 4000
    composition = Composition.of(none, [()] * 4000, np.zeros(4000, bool))
    drawn = compose_rows(source, composition, 480, seed=1)
    torch.testing.assert_close(drawn.mean(0), source[:480].mean(0), atol=0.15, rtol=0)
    torch.testing.assert_close(drawn.std(0), source[:480].std(0), atol=0.15, rtol=0)
    assert torch.equal(drawn, compose_rows(source, composition, 480, seed=1))
    assert not torch.equal(drawn, compose_rows(source, composition, 480, seed=2))


def slow_sparsemax(values: list[float]) -> list[float]:
    """The projection on the simplex, by bisection for τ."""
    low, high = min(values) - 1, max(values)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(max(v - middle, 0.0) for v in values) > 1 else (low, middle)
    return [max(value - high, 0.0) for value in values]


@settings(deadline=None)  # the first call compiles
@given(hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1)))
def test_sparsemax_is_the_projection_on_the_simplex(values: np.ndarray) -> None:
    found = np.maximum(values - sparsemax_threshold(values), 0)
    np.testing.assert_allclose(found, slow_sparsemax(values.tolist()), atol=1e-9)


def slow_focus(new: list[bytes], shared: list[bytes]) -> list[dict[int, float]]:
    def bag(token: bytes) -> set[bytes]:
        marked = b"\x02" + token + b"\x03"
        return {marked[i:j] for i in range(len(marked)) for j in range(i, len(marked) + 1) if j - i in LENGTHS}

    tokens = [*new, *shared]
    count = {gram: sum(gram in bag(token) for token in tokens) for token in tokens for gram in bag(token)}
    weight = {gram: math.log(1 + len(tokens) / k) for gram, k in count.items()}
    norm = [math.sqrt(sum(weight[gram] ** 2 for gram in bag(token))) for token in tokens]
    result = []
    for k, token in enumerate(new):
        near = {}
        for j, other in enumerate(shared):
            common = bag(token) & bag(other)
            if common:
                near[j] = sum(weight[gram] ** 2 for gram in common) / norm[k] / norm[len(new) + j]
        shares = slow_sparsemax(list(near.values())) if near else []
        result.append({j: share for j, share in zip(near, shares, strict=True) if share > 1e-9})
    return result


@settings(max_examples=50, deadline=None)  # the first call compiles
@given(*[st.lists(st.binary(min_size=1, max_size=9) | st.text("ab", min_size=1).map(str.encode), min_size=1)] * 2)
def test_focus_is_the_sparsemax_of_the_spellings_likeness(new: list[bytes], shared: list[bytes]) -> None:
    rows = focus(new, shared)
    for k, expected in enumerate(slow_focus(new, shared)):
        own = slice(rows.starts[k], rows.starts[k + 1])
        found = dict(zip(rows.ids[own].tolist(), rows.weights[own].tolist(), strict=True))
        assert {j: share for j, share in found.items() if share > 1e-9} == pytest.approx(expected, abs=1e-9)


def slow_omp(target: np.ndarray, atoms: np.ndarray, terms: int) -> tuple[list[int], np.ndarray]:
    """The definition: the atom of the largest cosine with the residual, then least squares over the selected atoms."""
    chosen: list[int] = []
    residual, coefficients = target, np.zeros(0)
    for _ in range(terms):
        cosines = [-1.0 if k in chosen else abs(residual @ atom) / np.linalg.norm(atom) for k, atom in enumerate(atoms)]
        chosen.append(int(np.argmax(cosines)))
        coefficients = np.linalg.lstsq(atoms[chosen].T, target, rcond=None)[0]
        residual = target - atoms[chosen].T @ coefficients
    return chosen, coefficients


def test_omp_is_the_pursuit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alm_pipeline.transfer.omp._BATCH_PRODUCTS", 200)  # several batches
    random = np.random.default_rng(0)
    targets, atoms = random.normal(size=(23, 16)), random.normal(size=(40, 16)) * random.uniform(0.1, 5, (40, 1))
    ids, coefficients = omp(torch.from_numpy(targets), torch.from_numpy(atoms), 5)
    for k, target in enumerate(targets):
        chosen, expected = slow_omp(target, atoms, 5)
        assert ids[k].tolist() == chosen
        np.testing.assert_allclose(coefficients[k], expected, rtol=1e-3, atol=1e-4)


def test_omp_finds_what_is_a_sum_of_atoms_and_survives_twins() -> None:
    atoms = torch.eye(8).repeat(2, 1)  # every atom twice
    targets = torch.stack([3 * atoms[1] - 2 * atoms[4], torch.zeros(8), atoms[2]])
    ids, coefficients = omp(targets, atoms, 20)
    assert ids.shape == (3, 8)
    assert np.isfinite(coefficients).all()
    rebuilt = (torch.from_numpy(coefficients).float().unsqueeze(-1) * atoms[ids]).sum(1)
    torch.testing.assert_close(rebuilt, targets)


def test_omp_rebuilds_a_source_that_is_the_donor_turned(
    byte_level: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast, donor: str
) -> None:
    """With as many terms as dimensions the donor's rows are exact, and so is any linear image of them."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(donor).get_input_embeddings().weight.detach().double()
    turn = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    mapping = map_vocabulary(LoadedTokenizer.of(byte_level), LoadedTokenizer.of(target))
    (composition,) = Initialization("omp", ModelReference(donor), 32).compositions(mapping, 1)
    source = torch.zeros(len(byte_level), 32, dtype=torch.float64)
    for id_ in np.flatnonzero(mapping.copied):
        source[mapping.pieces[id_][0]] = theirs[id_] @ turn
    ordinary = ~mapping.target.special
    made = compose_rows(source, composition, len(byte_level), 0)
    torch.testing.assert_close(made[ordinary], (theirs @ turn)[ordinary], atol=1e-3, rtol=1e-3)


def test_omp_asks_for_a_donor(byte_level: PreTrainedTokenizerFast, donor: str, tmp_path: Path) -> None:
    byte_level.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"student\.donor"):
        find_donor("omp", None, str(tmp_path))
    assert find_donor("omp", None, donor) == donor
    assert find_donor("fvt", None, str(tmp_path)) is None


def test_a_donor_has_the_targets_tokens(
    byte_level: PreTrainedTokenizerFast, sentencepiece: PreTrainedTokenizerFast, donor: str
) -> None:
    tokenizers = LoadedTokenizer.of(byte_level), LoadedTokenizer.of(sentencepiece)
    with pytest.raises(UserError, match="its tokenizer lacks"):
        swap_tokenizer(tiny.tiny_llama(len(byte_level)), *tokenizers, Initialization("omp", ModelReference(donor)))


def test_a_source_tokenizer_that_is_not_the_models_is_refused(byte_level: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="not the model's tokenizer"):
        swap_tokenizer(tiny.tiny_llama(100), LoadedTokenizer.of(byte_level), LoadedTokenizer.of(byte_level))
