"""Training: gradients by finite differences, the model untouched, the same bytes after a kill, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.config import AlmConfig, ObjectiveConfig, StudentConfig, TrainedTokenizer
from alm_pipeline.hypernetwork.batches import BatchMaker, DrawnBatch, TextStream
from alm_pipeline.hypernetwork.drawn_tables import DrawnRows
from alm_pipeline.hypernetwork.frozen_model import FrozenModel
from alm_pipeline.hypernetwork.networks.hypernetwork import Hypernetwork
from alm_pipeline.hypernetwork.networks.pieces import SourceTables
from alm_pipeline.hypernetwork.networks.registry import make_network
from alm_pipeline.hypernetwork.sampling.pretokenizers import PATTERNS, count_words
from alm_pipeline.hypernetwork.sampling.sampler import TokenizerSampler
from alm_pipeline.hypernetwork.sampling.settings import SamplerConfig
from alm_pipeline.hypernetwork.sampling.substrings import score_substrings
from alm_pipeline.hypernetwork.settings import (
    HypernetConfig,
    HypernetTrainConfig,
    load_hypernet_config,
    parse_hypernet_config,
)
from alm_pipeline.hypernetwork.stage import HypernetPipeline
from alm_pipeline.hypernetwork.training import HypernetTraining, schedule, step_terms
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.pipeline import Pipeline
from alm_pipeline.training.data.examples import read_examples
from alm_pipeline.training.data.row_stream import StreamPosition
from alm_pipeline.transfer.zero_step import transfer
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.hypernetwork.networks import SMALL, randomize
from tests.corpora import write_chats

SAMPLER = {"min_tokens": 300, "max_tokens": 420, "candidates": 400}


def small(config: AlmConfig, **changes: object) -> HypernetConfig:
    """A hypernetwork of the tiny Llama, or of what `changes` name, in a few steps."""
    plain = {
        "corpus": config.corpus.model_dump(mode="json"),
        "model": config.student.model,
        "score": config.score.model_dump(mode="json"),
        "sampler": SAMPLER,
        "network": {"rank": 4},
        "train": {"steps": 5, "texts": 3, "checkpoint_steps": 2, "learning_rate": 1e-2},
        "evaluation": {"trained": {"vocab_size": 420}, "steps": 2, "max_examples": 4},
    }
    return parse_hypernet_config({**plain, **changes})


@pytest.mark.parametrize(("kind", "rate", "negatives"), [("low_rank", 2e-3, None), ("transformer", 3e-4, 2048)])
def test_what_is_not_set_depends_on_the_kind_of_network(
    config: AlmConfig, tmp_path: Path, kind: str, rate: float, negatives: int | None
) -> None:
    network = {"kind": kind, "width": 64} if kind == "transformer" else {"kind": kind, "rank": 4}
    content = small(config).model_dump(mode="json") | {"network": network}
    without = parse_hypernet_config(content | {"train": {"steps": 5}})
    spelled_out = parse_hypernet_config(
        content | {"train": {"steps": 5, "learning_rate": rate, "negatives": negatives}}
    )
    other = parse_hypernet_config(content | {"train": {"steps": 5, "learning_rate": rate / 2}})
    assert (without.learning_rate, without.negatives) == (rate, negatives)
    names = [HypernetPipeline(each, str(tmp_path)).hypernetwork.name for each in (without, spelled_out, other)]
    assert names[0] == names[1] != names[2]


def drawn_batch(
    tokenizer: PreTrainedTokenizerFast, rows: pa.Table | None = None, objective: ObjectiveConfig | None = None
) -> DrawnBatch:
    loaded = LoadedTokenizer.of(tokenizer)
    found = {name: score_substrings(count_words(tiny.TEXTS * 3, name), 16, 400) for name in PATTERNS}
    sampler = TokenizerSampler(found, loaded, loaded.view.size, SamplerConfig.model_validate(SAMPLER), 0)
    rows = pa.table({"text": tiny.TEXTS}) if rows is None else rows
    maker = BatchMaker(objective or ObjectiveConfig(terms={"sft": 1.0}), loaded, loaded)
    return maker.make(rows, sampler.sample(4))


def scored_rows(config: AlmConfig, root: Path) -> pa.Table:
    """Training texts with the scores of the tiny Llama as its own teacher."""
    made = HypernetPipeline(small(config, objective={"terms": {"alm": 1}}), str(root))
    made.shard()
    made.score()
    stream = TextStream(made._datasets, 0, 100)
    texts = stream.texts(4, StreamPosition())
    rows = next(texts).rows
    texts.close()  # type: ignore[attr-defined]
    return rows


def all_rows(batch: DrawnBatch) -> DrawnRows:
    return DrawnRows.of(batch.drawn, batch.used, None, np.random.default_rng(0))


@pytest.mark.parametrize("kind", sorted(SMALL))
@pytest.mark.parametrize("terms", [{"sft": 1.0}, {"alm": 1.0}])
def test_gradients_are_the_slopes_of_the_loss(
    terms: dict[str, float], kind: str, config: AlmConfig, byte_level: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    objective = ObjectiveConfig(terms=terms, temperature=1.0)  # type: ignore[arg-type]
    batch = drawn_batch(byte_level, scored_rows(config, tmp_path) if "alm" in terms else None, objective)
    assert "alm" not in terms or int(batch.fields["teacher_logprobs_C"].shape[0]) > 20
    model = tiny.tiny_llama(len(byte_level)).double()
    frozen = FrozenModel(model, len(byte_level))
    wide = SourceTables.of([table.value for table in frozen.tables], len(byte_level))
    frozen.source = SourceTables(
        tuple(table.double() for table in wide.tables),
        wide.standard_SF.double(),
        tuple(scale.double() for scale in wide.scales),
    )
    fields = {name: value.double() if value.is_floating_point() else value for name, value in batch.fields.items()}
    batch = DrawnBatch(batch.drawn, fields)
    network = randomize(make_network(SMALL[kind], (32,))).double().eval()
    rows = all_rows(batch)

    def loss() -> torch.Tensor:
        found, _ = step_terms(frozen, network, batch, rows, objective)
        return torch.stack(list(found.values())).sum()

    loss().backward()
    random = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        assert parameter.grad is not None
        direction = torch.randn(parameter.shape, generator=random).double()
        # the model's norms and rotations are in float32 whatever its weights are
        ends, step = [], 1e-3
        for sign in (1, -2):
            with torch.no_grad():
                parameter += sign * step * direction
                ends.append(float(loss()))
        with torch.no_grad():
            parameter += step * direction
        slope = (ends[0] - ends[1]) / (2 * step)
        assert slope == pytest.approx(float((parameter.grad * direction).sum()), rel=2e-3, abs=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def llama_with_bias(tokens: int) -> PreTrainedModel:
    model = tiny.tiny_llama(tokens, tied=False)
    model.lm_head.bias = nn.Parameter(torch.randn(tokens, generator=torch.Generator().manual_seed(4)))
    return model


MODELS: dict[str, Callable[[int], PreTrainedModel]] = {
    "llama": tiny.tiny_llama,
    "untied": lambda tokens: tiny.tiny_llama(tokens, tied=False),
    "gemma": tiny.tiny_gemma,
    "gpt2": tiny.tiny_gpt2,
    "bias": llama_with_bias,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_step_computes_what_the_model_with_the_tokenizer_would(
    name: str, byte_level: PreTrainedTokenizerFast, sentencepiece: PreTrainedTokenizerFast
) -> None:
    """With the drawn tokenizer saved as an ordinary one, by transformers' own loss; Gemma scales its embeddings."""
    source = sentencepiece if name == "gemma" else byte_level
    model, own = (MODELS[name](len(source)).eval() for _ in range(2))
    model.get_input_embeddings().padding_idx = len(source) - 1  # may be beyond a drawn vocabulary
    batch = drawn_batch(source)
    frozen = FrozenModel(model, len(source))
    widths = tuple(table.value.reshape(len(table.value), -1).shape[1] for table in frozen.tables)
    network = randomize(make_network(SMALL["low_rank"], widths))
    with torch.no_grad():
        found, counts = step_terms(frozen, network, batch, all_rows(batch), ObjectiveConfig(terms={"sft": 1.0}))
        tables = all_rows(batch).tables(network, frozen.source)
    own.resize_token_embeddings(batch.drawn.size, mean_resizing=False)
    own.get_input_embeddings().padding_idx = None
    own.get_input_embeddings().weight.data = tables[0]
    own.lm_head.weight.data = tables[1 if name in ("untied", "bias") else 0]
    if name == "bias":
        own.lm_head.bias.data = tables[2].squeeze(-1)
    ids, predicted = batch.fields["token_ids_BS"], batch.fields["predicted_N"]
    with torch.no_grad():
        logprobs = own(input_ids=ids).logits.log_softmax(-1)
    targets = logprobs[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    expected = -targets[predicted.view(ids.shape)[:, 1:]].mean()
    assert int(counts.tokens) == int(predicted.sum())
    torch.testing.assert_close(found["sft"], expected, rtol=1e-4, atol=1e-4)


def test_chunks_are_those_of_the_same_tokenizer_in_a_run(config: AlmConfig, tmp_path: Path) -> None:
    """A drawn tokenizer, saved and named as a student's, gives the same chunks and teacher likelihoods."""
    rows = scored_rows(config, tmp_path / "data")
    tokenizer = LoadedTokenizer(config.student.model)
    batch = drawn_batch(tokenizer.fast, rows, ObjectiveConfig())
    wrapped = PreTrainedTokenizerFast(tokenizer_object=batch.drawn.tokenizer)
    shutil.copytree(config.student.model, tmp_path / "student")
    wrapped.save_pretrained(tmp_path / "student")
    model = tiny.tiny_llama(len(wrapped))
    model.save_pretrained(tmp_path / "student")
    student = StudentConfig(model=str(tmp_path / "student"))
    run = Pipeline(config.model_copy(update={"teacher": config.student.model, "student": student}), str(tmp_path / "r"))
    run.cache()
    shards = range(len(run.examples.complete_manifest().shards))
    read = [read_examples(run.caches, k, "train", ObjectiveConfig(), with_ids=True) for k in shards]
    expected = pl.concat([pl.DataFrame(pl.from_arrow(table)) for table in read])
    assert rows.num_rows == 4
    first = 0
    for row, id_ in enumerate(rows["id"].to_pylist()):
        (same,) = expected.filter(pl.col("id") == id_).to_dicts()
        length = len(same["token_ids"])
        assert batch.fields["token_ids_BS"][row, :length].tolist() == same["token_ids"]
        count = len(same["logprobs"])
        found = batch.fields["teacher_logprobs_C"][first : first + count]
        np.testing.assert_allclose(found.numpy(), same["logprobs"], rtol=1e-5, atol=1e-5)
        first += count
    assert first == len(batch.fields["teacher_logprobs_C"])


def test_few_negatives_stand_for_all(byte_level: PreTrainedTokenizerFast) -> None:
    """The sum over the vocabulary, by which one token's probability is divided, is the mean over draws."""
    batch = drawn_batch(byte_level)
    frozen = FrozenModel(tiny.tiny_llama(len(byte_level)), len(byte_level))
    network = randomize(make_network(SMALL["low_rank"], (32,)))
    unused = len(np.setdiff1d(batch.drawn.new, batch.used))
    assert unused > 30

    def sums(negatives: int | None, seed: int) -> torch.Tensor:
        rows = DrawnRows.of(batch.drawn, batch.used, negatives, np.random.default_rng(seed))
        ids = torch.from_numpy(rows.places)[batch.fields["token_ids_BS"]]
        raised = None if rows.raised is None else torch.from_numpy(rows.raised)
        with torch.no_grad():
            tables = rows.tables(network, frozen.source)
            assert len(tables[0]) == batch.drawn.size - (unused - negatives if negatives else 0)
            none = torch.zeros(0, dtype=torch.int64)
            same = torch.full_like(ids.flatten(), int(ids[0, 0]))
            logprobs = frozen.next_tokens(tables, ids, none, same, raised).target_logprobs_N
        return torch.exp(-logprobs[0])

    whole = sums(None, 0)
    assert torch.equal(sums(unused, 0), whole)
    estimates = torch.stack([sums(10, seed) for seed in range(200)])
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(float(estimates.mean() - whole)) < 4 * float(error)


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("terms", [{"sft": 1}, {"alm": 1, "sft": 0.5}])
def test_a_killed_training_resumes_to_the_same_bytes(
    terms: dict[str, float], config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = small(config, objective={"terms": terms})
    whole = HypernetPipeline(chosen, str(tmp_path / "whole"))
    manifest = whole.run()
    keep, evaluate = HypernetTraining._keep, HypernetTraining._evaluate
    for name, original, moment in (("_keep", keep, 0), ("_evaluate", evaluate, 2), ("_keep", keep, 1)):
        calls = []

        def dies(*arguments: object, original: object = original, moment: int = moment) -> object:
            calls.append(1)  # noqa: B023
            if len(calls) > moment:  # noqa: B023
                raise Killed
            return original(*arguments)  # type: ignore[operator]

        with monkeypatch.context() as patched:
            patched.setattr(HypernetTraining, name, dies)
            with pytest.raises(Killed):
                HypernetPipeline(chosen, str(tmp_path / "killed")).run()
    resumed = HypernetPipeline(chosen, str(tmp_path / "killed"))
    assert resumed.run() == manifest
    found = files_of(resumed.hypernetwork.path)
    assert found == files_of(whole.hypernetwork.path)
    assert sorted(found) == [
        "README.md",
        "config.json",
        "curves.png",
        "evaluations.parquet",
        "manifest.json",
        "metrics.parquet",
        "model.safetensors",
    ]
    assert not (resumed.hypernetwork.path / "checkpoints").exists()
    metrics = pl.read_parquet(whole.hypernetwork.path / "metrics.parquet")
    assert metrics["step"].to_list() == [1, 2, 3, 4, 5]
    assert metrics["alm"].null_count() == (0 if "alm" in terms else 5)
    assert metrics["vocabulary"].n_unique() == 5


@pytest.mark.parametrize("model", ["llama_folder", "gemma_folder"])
def test_the_model_stays_and_its_tokenizer_changes_with_the_network(
    model: str, config: AlmConfig, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    name = request.getfixturevalue(model)
    other = request.getfixturevalue("gemma_folder" if model == "llama_folder" else "llama_folder")
    made = HypernetPipeline(small(config, model=name), str(tmp_path / "data"))
    before = files_of(Path(name))
    manifest = made.run()
    assert files_of(Path(name)) == before
    evaluations = pl.read_parquet(made.hypernetwork.path / "evaluations.parquet")
    assert set(evaluations["method"]) == {"fvt", "focus", "hypernetwork"}
    untrained = evaluations.filter(pl.col("step") == 0)["bits_per_byte", "method"].to_dict(as_series=False)
    assert set(evaluations["step"]) == {0, 2, 4, 5}
    by_method = dict(zip(untrained["method"], untrained["bits_per_byte"], strict=True))
    assert by_method["hypernetwork"] == by_method["fvt"]
    results = manifest.results["held_out_bits_per_byte_by_tokenizer"]
    assert next(iter(results.values()))["hypernetwork"] <= by_method["fvt"]
    folder = made.hypernetwork.url
    counts, _ = transfer(name, other, tmp_path / "moved", initialization="hypernetwork", hypernetwork=folder)
    assert counts["predicted"] > 20


def test_another_model_may_teach(config: AlmConfig, tmp_path: Path) -> None:
    """Distillation by embeddings alone: the teacher's tokens are another tokenizer's, with one before every text."""
    chosen = small(config, teacher=config.teacher, objective={"terms": {"alm": 1}})
    made = HypernetPipeline(chosen, str(tmp_path))
    made.run()
    metrics = pl.read_parquet(made.hypernetwork.path / "metrics.parquet")
    assert metrics["chunks"].min() > 10
    assert made.pipeline.scores.identity["teacher"] == ModelReference(config.teacher).identity


def test_weights_and_gradients_of_the_model_stay(byte_level: PreTrainedTokenizerFast) -> None:
    model = tiny.tiny_llama(len(byte_level))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch, frozen = drawn_batch(byte_level), FrozenModel(model, len(byte_level))
    network = make_network(SMALL["low_rank"], (32,))
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    found, _ = step_terms(frozen, network, batch, all_rows(batch), ObjectiveConfig(terms={"sft": 1.0}))
    found["sft"].backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert any(
        float(parameter.grad.abs().max()) > 0 for parameter in network.parameters() if parameter.grad is not None
    )


def test_training_stops_when_no_evaluation_is_better(config: AlmConfig, tmp_path: Path) -> None:
    """With a learning rate that ruins the network, the untrained one stays the best."""
    chosen = small(
        config,
        train={"steps": 40, "texts": 2, "learning_rate": 30.0, "warmup_steps": 0, "checkpoint_steps": 3},
        evaluation={"trained": {"vocab_size": 420}, "steps": 2, "max_examples": 4, "patience": 2},
    )
    made = HypernetPipeline(chosen, str(tmp_path))
    results = made.run().results
    assert results["chosen_step"] == 0
    assert results["steps"] == 4
    network = Hypernetwork.load(made.hypernetwork.url).network
    assert all(float(value.abs().max()) == 0 for name, value in network.named_parameters() if name != "a")


def test_a_step_that_is_not_finite_stops_the_training(
    config: AlmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = HypernetPipeline(small(config), str(tmp_path))
    broken = nn.utils.clip_grad_norm_
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(UserError, match=r"stopped at step 1: the loss is .*lower train.learning_rate"):
        made.run()
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", broken)
    assert made.run().results["steps"] == 5


def test_the_rate_warms_up_and_falls_to_a_tenth() -> None:
    train = HypernetTrainConfig(steps=100, warmup_steps=10)
    assert schedule(0, train) == pytest.approx(0.1)
    assert schedule(50, train) == pytest.approx(1 - 0.9 * 0.5)
    assert schedule(99, train) == pytest.approx(0.109)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": {"terms": {"uld": 1}}}, "uld needs a fixed vocabulary or a teacher in memory"),
        ({"objective": {"chunking": "pair_bias"}}, "chunking pair_bias needs a table"),
        ({"objective": {"balance": "gradmag"}}, "balance gradmag balances a student's last layer"),
        ({"objective": {"assistant_only": True}}, "assistant_only: a hypernetwork is trained on plain texts"),
        ({"evaluation": {"trained": None}}, "there is none to evaluate with"),
        ({"network": {"kind": "low_rnak"}}, "network.kind"),
        ({"sampler": {"min_tokens": 10}}, "sampler.min_tokens"),
        ({"modle": "x"}, "modle"),
    ],
)
def test_what_does_not_fit_is_refused_by_field(
    change: dict[str, object], message: str, config: AlmConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        small(config, **change)
    file = tmp_path / "hypernet.yaml"
    file.write_text("- 1")
    with pytest.raises(UserError, match="is not a mapping"):
        load_hypernet_config(file)


def test_conversations_and_missing_tokenizers_are_refused_early(config: AlmConfig, tmp_path: Path) -> None:
    chats = write_chats(tmp_path / "chats.jsonl")
    corpus = {**config.corpus.model_dump(mode="json"), "source": {"kind": "files", "urls": [chats]}}
    with pytest.raises(UserError, match=r"corpus\.messages: a hypernetwork is trained on plain texts"):
        HypernetPipeline(small(config, corpus={**corpus, "messages": "messages"}), str(tmp_path / "a")).run()
    with pytest.raises(UserError, match="no/such-tokenizer"):
        HypernetPipeline(small(config, evaluation={"tokenizers": ["no/such-tokenizer"]}), str(tmp_path / "b")).run()
    assert not (tmp_path / "b" / "examples").exists()


def test_the_caches_are_those_of_other_runs(config: AlmConfig, tmp_path: Path) -> None:
    student = StudentConfig(model=config.student.model, tokenizer=TrainedTokenizer(vocab_size=420))
    run = Pipeline(
        config.model_copy(update={"teacher": config.student.model, "student": student}), str(tmp_path / "data")
    )
    run.cache()
    made = HypernetPipeline(small(config, objective={"terms": {"alm": 1}}), str(tmp_path / "data"))
    assert made.pipeline.scores.name == run.scores.name
    made.run()
    kinds = {path.name: len(list(path.iterdir())) for path in (tmp_path / "data").iterdir()}
    assert (kinds["examples"], kinds["teacher_scores"], kinds["tokenizers"]) == (1, 1, 1)
    assert (kinds["substrings"], kinds["hypernetworks"]) == (1, 1)
