"""The stages of an edit: what is found again, what a change recomputes, what survives a kill."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alm_pipeline.editing.directions.activations import ANSWERS, read_activations
from alm_pipeline.editing.directions.capture import last_token_activations
from alm_pipeline.editing.directions.demonstrations import unequal_answers, write_demonstrations
from alm_pipeline.editing.directions.neutral import greedy_answers
from alm_pipeline.editing.directions.settings import DemonstrationsConfig, layer_numbers
from alm_pipeline.editing.directions.texts import TextEncoder
from alm_pipeline.editing.edit import Editing
from storage.dataset import Dataset
from storage.errors import UserError
from storage.upkeep.catalog import Catalog

Make = Callable[..., Editing]


def times(root: Path) -> dict[str, int]:
    """When each shard and projection was written."""
    files = [*root.rglob("*.parquet"), *root.rglob("*.safetensors")]
    return {file.relative_to(root).as_posix(): file.stat().st_mtime_ns for file in files}


def contents(root: Path) -> dict[str, bytes]:
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    "change",
    [
        {"energy": 0.5},
        {"center": False},
        {"layers": "0"},
        {"method": "mean_shift"},
        {"nonlinearity": "tanh"},
        {"swap": True},
    ],
)
def test_another_edit_recomputes_only_projections(editing: Make, tmp_path: Path, change: dict[str, Any]) -> None:
    editing().project()
    before = times(tmp_path / "store")
    editing(**change).project()
    after = times(tmp_path / "store")
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"projections"}


def test_a_finished_edit_computes_nothing(editing: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = editing().project()
    monkeypatch.setattr("alm_pipeline.models.reference.ModelReference.load", None)
    again = editing().project()
    assert again.spectrum == first.spectrum
    assert all(np.array_equal(factor, again.factors[name]) for name, factor in first.factors.items())


@pytest.mark.parametrize("gone", ["neutral_answers", "activations", "projections"])
def test_what_a_kill_left_undone_is_done_again(editing: Make, tmp_path: Path, gone: str) -> None:
    """A dataset loses its manifest and its last shard, as a kill would leave it; the rest is found and kept."""
    editing(shard_rows=16).project()
    expected = contents(tmp_path / "store")
    for folder in (tmp_path / "store" / gone).iterdir():
        for name in ("manifest.json", "shard-00002.json", "shard-00002.parquet"):
            (folder / name).unlink(missing_ok=True)
    before = times(tmp_path / "store")
    editing(shard_rows=16).project()
    assert contents(tmp_path / "store") == expected
    if gone != "projections":
        after = times(tmp_path / "store")
        assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("rows", [40, 14, 5])
@pytest.mark.parametrize("center", [True, False])
def test_sums_and_any_shards_give_the_same_projections(
    editing: Make, monkeypatch: pytest.MonkeyPatch, rows: int, center: bool
) -> None:
    settings = {"center": center, "energy": 0.99, "batch_tokens": 1}  # a text's neighbors would change its rounding
    kept = editing(**settings).project()
    assert not editing(**settings).streams
    sharded = editing(**settings, shard_rows=rows)
    monkeypatch.setattr("alm_pipeline.editing.edit.keeps_activations", lambda *sizes: False)
    streamed = sharded.project()
    assert sharded.streams
    for name in {name.rpartition(".")[0] for name in kept.factors}:
        matrices = [
            each.of(name)["keep"] @ each.of(name)["keep"].T - each.of(name)["drop"] @ each.of(name)["drop"].T
            for each in (kept, streamed)
        ]
        np.testing.assert_allclose(*matrices, atol=1e-12)
    assert [place.signature for place in kept.spectrum] == pytest.approx([p.signature for p in streamed.spectrum])


def test_sums_are_those_of_the_activations(editing: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, streamed = editing(), editing(nonlinearity="tanh")
    kept.project()
    monkeypatch.setattr("alm_pipeline.editing.edit.keeps_activations", lambda *sizes: False)
    streamed.project()
    (sums,) = streamed.sources
    row = sums.read_shard(0).to_pylist()[1]
    monkeypatch.undo()
    answers, own = kept.sources
    shard = next(read_activations({**dict.fromkeys(ANSWERS, answers), "neutral": own}, 2))
    neutral, positive = (np.tanh(shard[side][:, 1].astype(np.float64)) for side in ("neutral", "positive"))
    assert (row["id"], row["rows"]) == ("1.mlp", 40)
    np.testing.assert_allclose(row["neutral"], neutral.sum(axis=0), atol=1e-12)
    np.testing.assert_allclose(
        np.reshape(row["neutral_positive"], (32, 32)),
        sum(np.outer(h, x) for h, x in zip(neutral, positive, strict=True)),
        atol=1e-12,
    )


@pytest.mark.parametrize("where", ["mlp", "writes", "residual"])
@pytest.mark.parametrize("family", ["llama_folder", "gemma_folder"])
def test_activations_are_the_models_own_at_the_last_token(
    editing: Make, request: pytest.FixtureRequest, where: str, family: str
) -> None:
    job = editing(request.getfixturevalue(family), where=where)
    job.project()
    model = job.reference.load("float32")
    layer = model.model.layers[1]
    parts = {"mlp": [layer.mlp], "writes": [layer.self_attn, layer.mlp], "residual": [layer]}[where]
    found: list[torch.Tensor] = []
    for part in parts:
        part.register_forward_hook(
            lambda module, inputs, output: found.append(output[0] if isinstance(output, tuple) else output)
        )
    shard = next(read_activations({"negative": job.sources[0]}, len(job.places)))["negative"]
    row = job.examples.read_shard(0).to_pylist()[7]
    with torch.no_grad():
        model(torch.tensor([TextEncoder(job.reference, False).ids(row["prompt"], row["negative"])]))
    for number, output in enumerate(found):
        stored = torch.from_numpy(shard[7, len(shard[7]) - len(parts) + number].copy())
        torch.testing.assert_close(stored, output[0, -1], rtol=2**-10, atol=1e-5)


def test_a_batch_and_its_padding_change_nothing(editing: Make) -> None:
    job = editing()
    model, rows = job.reference.load("float32"), [[5, 6, 7], [8] * 11, [9], [10, 11]]
    together = last_token_activations(model, job.places, rows, 10_000)
    alone = np.concatenate([last_token_activations(model, job.places, [row], 1) for row in rows])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_neutral_answers_are_greedy_and_end_before_the_end(editing: Make) -> None:
    model = editing().reference.load("float32")
    prompts = [[5, 6, 7], [8] * 9, [20, 21]]
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        expected.append(ids[len(prompt) :])
    model.generation_config.eos_token_id = None
    model.generation_config.repetition_penalty = 5.0
    assert greedy_answers(model, prompts, 6, 10_000) == expected
    model.generation_config.eos_token_id = expected[0][2]
    assert greedy_answers(model, prompts, 6, 1)[0] == expected[0][: expected[0].index(expected[0][2])]


def test_an_answer_that_the_file_has_is_taken(editing: Make, tmp_path: Path) -> None:
    rows = [
        {"prompt": "One", "positive": " a", "negative": " b", "neutral": " two"},
        {"prompt": "One more", "positive": " c", "negative": " bad"},
    ]
    job = editing(url=written(tmp_path, rows), neutral="neutral")
    job.project()
    answers = job.answers.read_shard(0).to_pylist()
    encoder = TextEncoder(job.reference, False)
    assert answers[0]["answer"] == " two"
    assert answers[0]["token_ids"] == encoder.ids("One", " two")
    assert answers[1]["token_ids"][: len(encoder.ids("One more"))] == encoder.ids("One more")
    assert job.answers.complete_manifest().counts["answers"] == 1


def test_chat_prompts_are_in_the_models_template(editing: Make) -> None:
    job = editing(chat=True)
    ids = TextEncoder(job.reference, True).ids("Hello", "Yes")
    text = job.reference.tokenizer.fast.decode(ids)
    assert text == "<|im_start|>user\nHello<|im_end|>\nYes"  # the tests' template begins no answer


def test_the_begin_of_text_token_is_the_models_own(editing: Make, gemma_folder: str) -> None:
    reference = editing(gemma_folder).reference
    assert TextEncoder(reference, False).ids("Hello")[0] == reference.tokenizer.fast.bos_token_id


def test_the_lineage_leads_to_the_demonstrations(editing: Make, tmp_path: Path) -> None:
    job = editing()
    job.project()
    catalog = Catalog.open(str(tmp_path / "store"))
    key = f"projections/{job.projections.name}"
    assert {name.split("/")[0] for name in catalog.origins([key])} == {
        "projections",
        "activations",
        "neutral_answers",
        "demonstrations",
    }


def written(folder: Path, rows: list[dict[str, Any]]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def demonstrated(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[Dataset, Editing]:
    job = Editing("none", DemonstrationsConfig(url=written(folder, rows), **settings), str(folder / "store"))
    write_demonstrations(job.examples, job.demonstrations)
    return job.examples, job


@pytest.mark.bad_input
def test_rows_that_are_no_demonstrations_are_counted(tmp_path: Path) -> None:
    good = {"prompt": "p", "positive": "a", "negative": "b"}
    bad = [{**good, "prompt": " "}, {**good, "positive": []}, {**good, "negative": None}, {**good, "negative": "a"}]
    bad.append({**good, "positive": "a" * 90})
    examples, _ = demonstrated(tmp_path, [good, *bad], max_bytes=64)
    manifest = examples.complete_manifest()
    assert manifest.rows == 1
    assert manifest.dropped == {
        "no prompt": 1,
        "no positive answer": 1,
        "no negative answer": 1,
        "the same positive and negative answer": 1,
        "longer than max_bytes": 1,
    }


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"question": "p", "positive": "a", "negative": "b"}, {}, "prompt"),
        ({"prompt": "p", "positive": 3, "negative": "b"}, {}, "positive is 3"),
        ({"prompt": "p", "positive": "", "negative": "b"}, {}, "no positive answer: 1"),
        ({"prompt": "p", "answers": ["a", "b"]}, {"choices": "answers"}, "not a mapping"),
    ],
)
def test_rows_of_other_columns_are_refused(
    tmp_path: Path, row: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        demonstrated(tmp_path, [row], **settings)


def test_pairs_are_made_of_choices(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{k}", "scores": {"yes": 1, "no": 0, "never": 0}} for k in range(20)]
    found = demonstrated(tmp_path, rows, choices="scores")[0].read_shard(0).to_pylist()
    assert {row["positive"] for row in found} == {"yes"}
    assert {row["negative"] for row in found} == {"no", "never"}


def test_answers_of_unequal_length_and_form_are_noticed(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{k}", "positive": "short", "negative": "This is a whole sentence."} for k in range(4)]
    length, form = unequal_answers(demonstrated(tmp_path, rows)[0].complete_manifest())
    assert "5.0 bytes on average and negative ones 25.0" in length
    assert "0% of the positive answers" in form


@pytest.mark.parametrize(
    ("layers", "numbers"),
    [
        ("last:2", [4, 5]),
        ("last:33%", [4, 5]),
        ("last:1%", [5]),
        ("all", [0, 1, 2, 3, 4, 5]),
        ("1-3", [1, 2, 3]),
        ("5, 0,2-3", [0, 2, 3, 5]),
    ],
)
def test_layers_are_named_in_several_ways(layers: str, numbers: list[int]) -> None:
    assert layer_numbers(layers, 6) == numbers


@pytest.mark.bad_input
@pytest.mark.parametrize("layers", ["", "last:7", "last:0", "6", "3-2", "first:2", "-1"])
def test_layers_that_the_model_lacks_are_refused(layers: str) -> None:
    with pytest.raises(UserError, match="layers"):
        layer_numbers(layers, 6)
