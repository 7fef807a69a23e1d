"""Networks: what they predict, by loops; FVT before training; what is copied stays; folders of others are refused."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from alm_pipeline.config import AlmConfig, Method, StudentConfig
from alm_pipeline.hypernetwork.networks.hypernetwork import Hypernetwork, predict, predict_in_parts
from alm_pipeline.hypernetwork.networks.pieces import Pieces, SourceTables
from alm_pipeline.hypernetwork.networks.registry import NETWORKS, make_network
from alm_pipeline.hypernetwork.networks.settings import NetworkConfig, NetworkKind
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.transfer.fvt import map_vocabulary
from alm_pipeline.transfer.initialization import METHODS, Initialization
from alm_pipeline.transfer.swap import embedding_tables, swap_tokenizer
from alm_pipeline.transfer.zero_step import transfer
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.hypernetwork.networks import SMALL, randomize, write_hypernetwork

KINDS = sorted(SMALL)


@pytest.fixture(scope="module")
def target() -> PreTrainedTokenizerFast:
    """Longer tokens than the source's, of other words."""
    return tiny.byte_level_tokenizer(520, ["quick brown foxes, jumping left and right. How many clips in April? " * 5])


def model_with(tokens: int, dtype: torch.dtype, *, tied: bool, bias: bool) -> torch.nn.Module:
    model = tiny.tiny_llama(tokens, tied=tied).to(dtype)
    if bias:
        model.lm_head.bias = torch.nn.Parameter(torch.randn(tokens, dtype=dtype))
    return model


def test_the_registries_have_every_choice() -> None:
    assert set(NETWORKS) == set(get_args(NetworkKind)) == set(SMALL)
    assert set(METHODS) == set(get_args(Method))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_untrained_networks_are_fvt_to_the_bit(
    kind: str,
    tied: bool,
    bias: bool,
    dtype: torch.dtype,
    byte_level: PreTrainedTokenizerFast,
    target: PreTrainedTokenizerFast,
    llama_folder: str,
    tmp_path: Path,
) -> None:
    fvt, moved = (model_with(len(byte_level), dtype, tied=tied, bias=bias) for _ in range(2))
    widths = (32, *([] if tied else [32]), *([1] if bias else []))
    folder = write_hypernetwork(tmp_path / "network", llama_folder, widths, kind, random=False)
    sides = LoadedTokenizer.of(byte_level), LoadedTokenizer.of(target)
    expected = swap_tokenizer(fvt, *sides).counts()
    counts = swap_tokenizer(moved, *sides, Initialization("hypernetwork", hypernetwork=Hypernetwork.load(folder)))
    assert counts.counts() == {"copied": expected["copied"], "predicted": expected["composed"]}
    for table, same in zip(embedding_tables(fvt), embedding_tables(moved), strict=True):
        assert torch.equal(table.value, same.value)


@pytest.mark.parametrize("kind", KINDS)
def test_only_tokens_of_several_pieces_change(
    kind: str,
    byte_level: PreTrainedTokenizerFast,
    target: PreTrainedTokenizerFast,
    llama_folder: str,
    tmp_path: Path,
) -> None:
    fvt, moved = (tiny.tiny_llama(len(byte_level)) for _ in range(2))
    folder = write_hypernetwork(tmp_path / "network", llama_folder, kind=kind)
    setting = Initialization("hypernetwork", hypernetwork=Hypernetwork.load(folder))
    sides = LoadedTokenizer.of(byte_level), LoadedTokenizer.of(target)
    swap_tokenizer(fvt, *sides)
    swap_tokenizer(moved, *sides, setting)
    has_several = np.array([len(pieces) > 1 for pieces in map_vocabulary(*sides).pieces])
    differs = fvt.get_input_embeddings().weight.ne(moved.get_input_embeddings().weight).any(-1).numpy()
    assert has_several.sum() > 10
    assert np.array_equal(differs, has_several)


def test_a_model_moved_to_its_own_tokenizer_or_to_bytes_is_that_of_fvt(
    byte_level: PreTrainedTokenizerFast, llama_folder: str, tmp_path: Path
) -> None:
    setting = Initialization(
        "hypernetwork", hypernetwork=Hypernetwork.load(write_hypernetwork(tmp_path / "network", llama_folder))
    )
    alphabet = tiny.byte_level_tokenizer(259)  # the bytes and the special tokens
    for tokenizer in (byte_level, alphabet):
        fvt, moved = (tiny.tiny_llama(len(byte_level)) for _ in range(2))
        sides = LoadedTokenizer.of(byte_level), LoadedTokenizer.of(tokenizer)
        assert swap_tokenizer(moved, *sides, setting).counts() == swap_tokenizer(fvt, *sides).counts()
        assert torch.equal(moved.lm_head.weight, fvt.lm_head.weight)


def test_the_low_rank_network_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(1)
    tables = [torch.randn(12, 5, generator=generator) * 3 + 1, torch.randn(12, generator=generator)]
    rows = [(3, 4, 5), (7,), (0, 0, 9, 2, 1, 11, 6, 6, 6, 10)]
    network = randomize(make_network(NetworkConfig(rank=2), (5, 1)))
    with torch.no_grad():
        found = predict(network, SourceTables.of(tables, 10), Pieces.of(rows))
    parameters = {name: value.double().tolist() for name, value in network.named_parameters()}
    flat = [table.reshape(12, -1).double().tolist() for table in tables]
    for t, pieces in enumerate(rows):
        features, first, last, mean = [], [], [], []
        for table in flat:
            for w in range(len(table[0])):
                column = [table[s][w] for s in range(10)]  # further rows are padding
                center = sum(column) / 10
                std = (sum((value - center) ** 2 for value in column) / 9) ** 0.5
                values = [(table[s][w] - center) / std for s in pieces]
                first.append(values[0])
                last.append(values[-1])
                mean.append(sum(values) / len(values))
                features.append((std, sum(table[s][w] for s in pieces) / len(pieces)))
        read = [*first, *last, *mean]
        hidden = [sum(a * x for a, x in zip(row, read, strict=True)) for row in parameters["a"]]
        at = 0
        for k, table in enumerate(flat):
            for w in range(len(table[0])):
                std, own = features[at]
                change = parameters[f"gains.{k}"][w] * mean[at] + parameters[f"offsets.{k}"][w]
                change += sum(b * h for b, h in zip(parameters[f"b.{k}"][w], hidden, strict=True))
                assert float(found[k][t][w]) == pytest.approx(own + std * change, rel=1e-4, abs=1e-4)
                at += 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_tokens_beside_it(kind: str) -> None:
    table = torch.randn(20, 8, generator=torch.Generator().manual_seed(2))
    network = randomize(make_network(SMALL[kind], (8,))).eval()
    rows = [(1, 2), (3, 4, 5, 6, 7), (8, 9, 10)]
    source = SourceTables.of([table], 20)
    with torch.no_grad():
        (together,) = predict(network, source, Pieces.of(rows))
        alone = torch.cat([predict(network, source, Pieces.of([row]))[0] for row in rows])
        (sliced,) = predict(network, source, Pieces.of(rows).slice(slice(1, 3)))
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together[1:], sliced)
    (order,) = predict(network, source, Pieces.of([(2, 1)]))
    assert not torch.allclose(order[0], together[0])


def test_a_large_vocabulary_is_predicted_in_parts() -> None:
    table = torch.randn(20, 8, generator=torch.Generator().manual_seed(2))
    network = randomize(make_network(SMALL["low_rank"], (8,))).eval()
    source = SourceTables.of([table], 20)
    pieces = Pieces.of([(k % 20, k % 7, k % 3)[: 2 + k % 2] for k in range(9000)])
    (found,) = predict_in_parts(network, source, pieces)
    with torch.no_grad():
        (expected,) = predict(network, source, pieces)
    torch.testing.assert_close(found, expected)


def test_pieces_beyond_the_most_count_only_in_their_mean() -> None:
    table = torch.zeros(20, 8)
    table[:10] = torch.randn(10, 8, generator=torch.Generator().manual_seed(2))
    network = randomize(make_network(SMALL["transformer"], (8,))).eval()
    source = SourceTables.of([table], 20)
    rows = [(1, 2, 3, 4), (1, 2, 3, 5)]
    (found,) = network(source, Pieces.of(rows))
    torch.testing.assert_close(found[0], found[1])


def test_a_folder_is_read_back(llama_folder: str, tmp_path: Path) -> None:
    folder = write_hypernetwork(tmp_path / "network", llama_folder)
    loaded = Hypernetwork.load(folder)
    loaded.require_source(ModelReference(llama_folder))
    assert loaded.identity == Hypernetwork.load(folder).identity
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    weights = load_file(tmp_path / "network" / "model.safetensors")
    weights["a"][0, 0] += 1
    save_file(weights, tmp_path / "network" / "model.safetensors")
    assert Hypernetwork.load(folder).identity != loaded.identity


def test_other_folders_are_refused(llama_folder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a hypernetwork's folder \(it has no config.json\): .*alm hypernet"):
        Hypernetwork.load(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="are not a hypernetwork's, or are damaged"):
        Hypernetwork.load(str(tmp_path))
    folder = Path(write_hypernetwork(tmp_path / "network", llama_folder))
    weights = load_file(folder / "model.safetensors")
    save_file({name: value * torch.nan for name, value in weights.items()}, folder / "model.safetensors")
    with pytest.raises(UserError, match="NaN or infinite"):
        Hypernetwork.load(str(folder))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-5])
    with pytest.raises(UserError, match="damaged"):
        Hypernetwork.load(str(folder))


def test_another_model_is_refused_with_both_identities(llama_folder: str, gemma_folder: str, tmp_path: Path) -> None:
    folder = write_hypernetwork(tmp_path / "network", llama_folder)
    own, other = (ModelReference(name).identity[:16] for name in (llama_folder, gemma_folder))
    message = f"trained for the model {own} of {llama_folder}, and {gemma_folder} is the model {other}"
    for method in ("hypernetwork", "fvt"):
        with pytest.raises(UserError, match=message if method == "hypernetwork" else "hypernetwork belongs to"):
            transfer(gemma_folder, llama_folder, tmp_path / "new", initialization=method, hypernetwork=folder)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="needs a trained one"):
        transfer(llama_folder, gemma_folder, tmp_path / "new", initialization="hypernetwork")
    assert not (tmp_path / "new").exists()


def test_another_head_is_refused(
    byte_level: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast, llama_folder: str, tmp_path: Path
) -> None:
    network = Hypernetwork.load(write_hypernetwork(tmp_path / "network", llama_folder, (32, 32)))
    setting = Initialization("hypernetwork", hypernetwork=network)
    with pytest.raises(UserError, match=r"tables of 32 \+ 32 channels, and the model's have 32"):
        swap_tokenizer(
            tiny.tiny_llama(len(byte_level)), LoadedTokenizer.of(byte_level), LoadedTokenizer.of(target), setting
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"initialization": "hypernetwork"}, "needs a trained one: name its folder"),
        ({"hypernetwork": "folder"}, "belongs to initialization hypernetwork, but initialization is fvt"),
    ],
)
def test_the_setting_and_the_method_belong_together(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StudentConfig(model="m", **fields)  # type: ignore[arg-type]


def test_a_students_name_has_the_hypernetwork(config: AlmConfig, tmp_path: Path) -> None:
    source = config.student.model
    width = ModelReference(source).load("float32").get_input_embeddings().weight.shape[1]
    names = []
    for number in range(2):
        folder = write_hypernetwork(tmp_path / str(number), source, (width,), random=bool(number))
        student = StudentConfig(
            model=source, tokenizer=config.teacher, initialization="hypernetwork", hypernetwork=folder
        )
        pipeline = Pipeline(config.model_copy(update={"student": student}), str(tmp_path / "data"))
        pipeline.train_tokenizer()
        setting = Initialization.of(student)
        names.append(setting.identity()["hypernetwork"])
    assert len(set(names)) == 2
    other = student.model_copy(update={"model": config.teacher, "tokenizer": source})
    findings = Pipeline(config.model_copy(update={"student": other}), str(tmp_path / "data")).preflight()
    assert any("was trained for the model" in finding.sentence for finding in findings)
