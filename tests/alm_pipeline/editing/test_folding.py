"""Edits as part of a model: folded into weights or in a file of code, against hooks written down here."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from alm_pipeline.editing.directions.capture import last_token_activations
from alm_pipeline.editing.directions.modeling_edited import Edit
from alm_pipeline.editing.directions.places import find_places
from alm_pipeline.editing.directions.settings import EditEvaluationConfig
from alm_pipeline.editing.directions.stage import PlaceSpectrum, Projections
from alm_pipeline.editing.edit import Editing
from alm_pipeline.editing.edits import edited, make_edits, measure_scales
from alm_pipeline.editing.folder import build_edited
from alm_pipeline.editing.folding import plan_folding
from alm_pipeline.editing.probes import probe
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.models.small_models import small_model

Make = Callable[..., Editing]
WIDTH = 32
IDS = torch.arange(5, 29).reshape(2, 12)
MODELS = {"llama": tiny.tiny_llama, "gemma": tiny.tiny_gemma, "gpt2": tiny.tiny_gpt2, "qwen": tiny.tiny_qwen}


def model_of(family: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A tiny model with weights so large that an edit moves its logits."""
    model = MODELS[family](101).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if family == "gemma" and parameter.dim() > 1:
                parameter.mul_(4)
    return model


def projections_for(model: PreTrainedModel, where: Any, layers: tuple[int, ...], *, shift: bool = False) -> Projections:
    """Random directions: 20 kept, 3 dropped; or a random shift."""
    random, factors, spectrum = np.random.default_rng(0), {}, []
    for place in find_places(model, where):
        chosen = place.layer in layers
        spectrum.append(
            PlaceSpectrum(place.name, place.layer, place.part, place.module, chosen, 0, 20, 3, [], [], [], 0)
        )
        if chosen and shift:
            factors[f"{place.name}.shift"] = random.normal(size=WIDTH)
        elif chosen:
            for name, rank in (("keep", 20), ("drop", 3)):
                factors[f"{place.name}.{name}"] = np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))[0][:, :rank]
    return Projections(factors, tuple(spectrum))


def module_at(model: PreTrainedModel, layer: int, part: str) -> Any:
    layers = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    names = {"mlp": ("mlp",), "attention": ("self_attn", "attn"), "layer": ()}[part]
    return next((getattr(layers[layer], name) for name in names if hasattr(layers[layer], name)), layers[layer])


@contextmanager
def hooked(
    model: PreTrainedModel, projections: Projections, change: Callable[[Tensor, dict[str, Tensor]], Tensor]
) -> Iterator[None]:
    """Change the outputs of edited places by the definition, with d × d matrices."""

    def hook(factors: dict[str, Tensor]) -> Any:
        def run(module: nn.Module, inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (change(output[0], factors), *output[1:])
            return change(output, factors)

        return run

    handles = [
        module_at(model, place.layer, place.part).register_forward_hook(
            hook({name: torch.from_numpy(it) for name, it in projections.of(place.place).items()})
        )
        for place in projections.spectrum
        if place.edited
    ]
    yield
    for handle in handles:
        handle.remove()


def matrix(factors: dict[str, Tensor]) -> Tensor:
    identity = torch.eye(WIDTH, dtype=torch.float64)
    return factors["keep"] @ factors["keep"].T + identity - factors["drop"] @ factors["drop"].T


def keeping_the_norm(states: Tensor, factors: dict[str, Tensor]) -> Tensor:
    projected = states @ matrix(factors).T
    return projected * states.norm(dim=-1, keepdim=True) / projected.norm(dim=-1, keepdim=True)


def shifted(states: Tensor, factors: dict[str, Tensor]) -> Tensor:
    return states + factors["shift"]


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor = IDS) -> Tensor:
    return model(ids).logits


def reloaded(model: PreTrainedModel, folder: Path, **settings: Any) -> PreTrainedModel:
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype, **settings)


@pytest.mark.parametrize("where", ["mlp", "writes"])
def test_the_fold_is_the_edit_where_a_norm_follows(tmp_path: Path, where: str) -> None:
    model = model_of("gemma")
    projections = projections_for(model, where, (0, 1))
    before = logits(model)
    with hooked(model, projections, keeping_the_norm):
        expected = logits(model)
    built = build_edited(model, projections, "none", "always", IDS.tolist(), 1000)
    assert all(folding.exact for folding in built.foldings)
    loaded = reloaded(model, tmp_path)
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-4)
    assert not list(tmp_path.glob("*.py"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen"])
def test_elsewhere_the_fold_is_the_edit_with_a_constant_scale(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alm_pipeline.editing.folding.MOST_SPREAD", 1.0)  # a tiny model's scales spread widely
    model = model_of(family)
    projections = projections_for(model, "mlp", (1,))
    built = build_edited(original := copy.deepcopy(model), projections, "none", "always", IDS.tolist(), 1000)
    (folding,) = built.foldings
    assert not folding.exact
    with hooked(model, projections, lambda states, factors: folding.scale * states @ matrix(factors).T):
        torch.testing.assert_close(logits(reloaded(original, tmp_path)), logits(model), rtol=0, atol=1e-10)


def test_the_scale_is_the_mean_over_real_tokens() -> None:
    model = model_of("llama")
    projections = projections_for(model, "mlp", (0, 1))
    rows = [[5, 6, 7, 8, 9], [10, 11]]
    ratios: dict[str, list[float]] = {"0.mlp": [], "1.mlp": []}

    def change(states: Tensor, factors: dict[str, Tensor]) -> Tensor:
        name = next(n for n in ratios if torch.equal(factors["keep"], torch.from_numpy(projections.of(n)["keep"])))
        ratios[name] += (states.norm(dim=-1) / (states @ matrix(factors).T).norm(dim=-1)).flatten().tolist()
        return keeping_the_norm(states, factors)

    with hooked(model, projections, change), torch.no_grad():
        for row in rows:
            model(torch.tensor([row]))
    for batch_tokens in (1, 1000):
        scales = measure_scales(model, make_edits(projections, "none"), rows, batch_tokens)
        for name, found in ratios.items():
            assert scales[name].mean == pytest.approx(np.mean(found), rel=1e-5)
            assert scales[name].spread == pytest.approx(np.std(found) / np.mean(found), rel=1e-4)


@pytest.mark.parametrize(("family", "where"), [("llama", "mlp"), ("llama", "writes"), ("gpt2", "writes")])
def test_a_shift_becomes_a_bias(tmp_path: Path, family: str, where: str) -> None:
    model = model_of(family)
    projections = projections_for(model, where, (1,), shift=True)
    with hooked(model, projections, shifted):
        expected = logits(model)
    assert (expected - logits(model)).abs().max() > 0.1
    build_edited(model, projections, "none", "always", IDS.tolist(), 1000)
    loaded = reloaded(model, tmp_path)
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-10)
    assert type(loaded) is type(MODELS[family](101))


def test_a_fold_into_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    model = model_of("gemma", torch.bfloat16)
    exact = copy.deepcopy(model).double()
    projections = projections_for(model, "mlp", (1,))
    weight = exact.model.layers[1].mlp.down_proj.weight
    (folding,) = build_edited(model, projections, "none", "always", IDS.tolist(), 1000).foldings
    factors = {name: torch.from_numpy(it) for name, it in projections.of("1.mlp").items()}
    expected = (folding.scale * matrix(factors) @ weight.detach()).to(torch.bfloat16)
    stored = reloaded(model, tmp_path).model.layers[1].mlp.down_proj.weight
    difference = (stored.double() - expected.double()).abs()
    assert (difference <= expected.double().abs() * 2**-8).all()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("family", "where", "shift", "nonlinearity", "message"),
    [
        ("llama", "residual", False, "none", r"LlamaDecoderLayer.*passes a layer unedited"),
        ("llama", "mlp", False, "none", r"LlamaDecoderLayer.*standard deviation of .*% over tokens"),
        ("qwen", "mlp", True, "none", r"Qwen2DecoderLayer.*has no bias, and qwen2 has no setting"),
        ("llama", "mlp", False, "tanh", r"LlamaDecoderLayer.*tanh is not linear"),
    ],
)
def test_what_can_not_be_folded_is_refused(
    family: str, where: str, shift: bool, nonlinearity: str, message: str
) -> None:
    model = model_of(family)
    projections = projections_for(model, where, (1,), shift=shift)
    with pytest.raises(UserError, match=message):
        build_edited(model, projections, nonlinearity, "always", IDS.tolist(), 1000)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(("where", "shift"), [("mlp", False), ("writes", False), ("residual", False), ("mlp", True)])
def test_the_file_of_code_has_the_same_edit(tmp_path: Path, family: str, where: str, shift: bool) -> None:
    model = model_of(family)
    projections = projections_for(model, where, (0, 1), shift=shift)
    with hooked(model, projections, shifted if shift else keeping_the_norm):
        expected = logits(model)
    built = build_edited(model, projections, "none", "never", IDS.tolist(), 1000)
    assert not built.foldings
    loaded = reloaded(model, tmp_path, trust_remote_code=True)
    assert {buffer.dtype for buffer in loaded.edits.buffers()} <= {torch.float32, torch.float64}
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises((ValueError, OSError), match=r"trust_remote_code|custom code"):
        AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)


def test_projections_stay_in_float32_in_a_model_of_bfloat16(tmp_path: Path) -> None:
    model = model_of("llama", torch.bfloat16)
    projections = projections_for(model, "residual", (1,))
    build_edited(model, projections, "none", "auto", IDS.tolist(), 1000)
    loaded = reloaded(model, tmp_path, trust_remote_code=True)
    assert {buffer.dtype for buffer in loaded.edits.buffers()} == {torch.float32}
    np.testing.assert_allclose(loaded.edits[0].keep, projections.of("1.layer")["keep"], atol=1e-6)


@pytest.mark.parametrize("nonlinearity", ["none", "tanh", "elu", "squared_exponential"])
@pytest.mark.parametrize("where", ["mlp", "writes", "residual"])
def test_a_token_is_edited_by_itself(tmp_path: Path, where: str, nonlinearity: str) -> None:
    """Alone, before other tokens, in a batch, padded on either side, and with a cache."""
    model = model_of("llama")
    build_edited(model, projections_for(model, where, (0, 1)), nonlinearity, "never", IDS.tolist(), 1000)
    loaded = reloaded(model, tmp_path, trust_remote_code=True)
    row = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        expected = loaded(row).logits[0]
        longer = loaded(torch.cat([row, torch.tensor([[11, 12, 13]])], 1)).logits[0, :6]
        pad = torch.zeros(1, 3, dtype=torch.int64)
        right = torch.cat([torch.cat([row, pad], 1), IDS[:1, :9]])
        left = torch.cat([torch.cat([pad, row], 1), IDS[:1, :9]])
        mask = torch.tensor([[1] * 6 + [0] * 3, [1] * 9])
        batches = [
            loaded(right, attention_mask=mask).logits[0, :6],
            loaded(left, attention_mask=mask.flip(1), position_ids=(mask.flip(1).cumsum(1) - 1).clamp(0)).logits[0, 3:],
        ]
        cache, steps = None, []
        for token in row[0]:
            step = loaded(token.reshape(1, 1), past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            steps.append(step.logits[0, 0])
    for found in (longer, *batches, torch.stack(steps)):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_probes_find_what_writes_and_what_norms(tmp_path: Path) -> None:
    ids, found = IDS[0], {}
    for family in MODELS:
        model = model_of(family)
        places = projections_for(model, "writes", (1,)).spectrum
        found[family] = [probe(model, place, ids) for place in places if place.edited]
    writes = {family: [each.write.rpartition(".")[2] for each in probes] for family, probes in found.items()}
    assert writes == {
        "llama": ["o_proj", "down_proj"],
        "gemma": ["o_proj", "down_proj"],
        "gpt2": ["c_proj", "c_proj"],
        "qwen": ["o_proj", "down_proj"],
    }
    assert {family: {each.ignores_scale for each in probes} for family, probes in found.items()} == {
        "llama": {False},
        "gemma": {True},
        "gpt2": {False},
        "qwen": {False},
    }


@pytest.mark.bad_input
def test_a_layer_without_a_known_mlp_is_refused() -> None:
    model = model_of("llama")
    model.model.layers[1].other = model.model.layers[1].mlp
    del model.model.layers[1].mlp
    with pytest.raises(UserError, match="layer 1: LlamaDecoderLayer has no module that is known as its mlp"):
        find_places(model, "mlp")


def test_an_edit_is_scaled_by_the_edited_models_own_norms() -> None:
    """The hooks that measure scales edit as well, and leave the model as it was."""
    model = model_of("llama")
    edits = make_edits(projections_for(model, "mlp", (0, 1)), "none")
    before = logits(model)
    measure_scales(model, edits, IDS.tolist(), 1000)
    assert torch.equal(logits(model), before)
    with edited(model, edits):
        assert (logits(model) - before).abs().max() > 1e-3


def test_a_plan_states_every_places_folding() -> None:
    model = model_of("gemma")
    edits = make_edits(projections_for(model, "writes", (0, 1)), "none")
    probes = {each.place.place: probe(model, each.place, IDS[0]) for each in edits}
    scales = measure_scales(model, edits, IDS.tolist(), 1000)
    planned = plan_folding(model, edits, probes, scales)
    assert [folding.place for folding in planned] == ["0.attention", "0.mlp", "1.attention", "1.mlp"]
    assert all(folding.scale == scales[folding.place].mean for folding in planned)


@pytest.mark.parametrize(
    ("settings", "code"),
    [({"method": "mean_shift"}, False), ({"fold": "never"}, True), ({"nonlinearity": "elu"}, True)],
)
def test_the_folder_is_measured_and_described(
    editing: Make, tmp_path: Path, pairs: str, settings: dict[str, Any], code: bool
) -> None:
    job, folder = editing(**settings), tmp_path / "edited"
    evaluation = EditEvaluationConfig(contrasts=str(shutil.copy(pairs, tmp_path / "contrasts.jsonl")))
    record, measures = job.run(folder, evaluation)
    assert bool(list(folder.glob("*.py"))) == code
    assert [measure["name"] for measure in measures] == ["control bits per byte", "log-odds of positive answers"]
    card = (folder / "README.md").read_text()
    assert f"{measures[0]['before']:.4f} | {measures[0]['after']:.4f}" in card
    assert ("trust_remote_code" in card) == code
    assert (folder / "spectrum.png").read_bytes().startswith(b"\x89PNG")
    again = editing(**settings)
    assert again.run(folder, evaluation) == (record, json.loads(json.dumps(measures)))
    with pytest.raises(UserError, match="holds another edit"):
        editing(energy=0.5).write(folder)


def test_the_same_edit_is_the_same_bytes(editing: Make, tmp_path: Path) -> None:
    for name in ("first", "second"):
        editing(root=tmp_path / f"store-{name}").write(tmp_path / name)
    files = {file.name: file.read_bytes() for file in (tmp_path / "first").iterdir() if file.name != "spectrum.png"}
    assert files == {name: (tmp_path / "second" / name).read_bytes() for name in files}


@pytest.mark.bad_input
def test_another_folder_is_not_overwritten(editing: Make, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        editing().write(tmp_path / "mine")


def test_an_edit_of_zero_norm_stays_zero() -> None:
    edit = Edit(4, 0, 4).double()
    edit.drop.copy_(torch.eye(4, dtype=torch.float64))
    assert torch.equal(edit(torch.ones(1, 4, dtype=torch.float64)), torch.zeros(1, 4, dtype=torch.float64))


@pytest.mark.parametrize("where", ["mlp", "writes", "residual"])
@pytest.mark.parametrize(
    "kind", ["GPTNeoXConfig", "MixtralConfig", "Olmo2Config", "OPTConfig", "PhiConfig", "FalconConfig"]
)
def test_other_families_are_read_and_edited(tmp_path: Path, kind: str, where: str) -> None:
    """Other names, parallel branches, experts, and MLPs whose outputs have the tokens of all rows in one dimension."""
    model = small_model(getattr(transformers, kind), "AutoModelForCausalLM")
    width = model.config.hidden_size
    places = find_places(model, where)
    rows = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
    together = last_token_activations(model, places, rows, 1000)
    assert together.shape == (3, len(places), width)
    alone = np.concatenate([last_token_activations(model, places, [row], 1000) for row in rows])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)
    random = np.random.default_rng(0)
    shift = {f"{place.name}.shift": random.normal(size=width) for place in places}
    spectrum = [PlaceSpectrum(p.name, p.layer, p.part, p.module, True, 0, None, None, [], [], [], 0) for p in places]
    ids = torch.arange(8)[None]
    with torch.no_grad():
        before = model(ids).logits
        build_edited(model, Projections(shift, tuple(spectrum)), "none", "auto", ids.tolist(), 1000)
        after = model(ids).logits
    assert (after - before).abs().max() > 1e-4
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True, dtype=torch.float32)
    torch.testing.assert_close(logits(loaded, ids), after, rtol=1e-4, atol=1e-4)
