"""Every way to compute a student's forward pass gives the same losses and gradients, and leaves no trace."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from alm_pipeline.config import ObjectiveConfig, TrainConfig
from alm_pipeline.models.output_head import hidden_states
from alm_pipeline.training.model.execution import configured_execution, replaced_forward
from storage.errors import UserError
from tests import tiny
from tests.alm_pipeline.training.data.test_batch_stream import example
from tests.alm_pipeline.training.loop.test_train import losses_of

ROWS = [[example(length, 77) for length in lengths] for lengths in ((20, 9), (33,), (14, 5, 6))]


def loss_and_gradients(model: PreTrainedModel, config: TrainConfig) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    model.train()
    with configured_execution(model, config):
        loss = losses_of(model, ROWS, ObjectiveConfig(temperature=3.0))["alm"]
        loss.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return loss.detach(), gradients


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # the tracer's
@pytest.mark.parametrize(
    "setting", [{"activation_checkpointing": True}, {"compile": True}, {"attention": "eager"}, {}], ids=str
)
def test_losses_and_gradients_are_the_same(setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # traced as by the default compiler, which takes a minute
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    model = tiny.tiny_gemma(1000)
    expected, expected_gradients = loss_and_gradients(model, TrainConfig())
    config = TrainConfig.model_validate(setting)
    found, gradients = loss_and_gradients(model, config)
    torch.testing.assert_close(found, expected)
    assert gradients.keys() == expected_gradients.keys()
    for name, value in expected_gradients.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-3, atol=1e-6)


def test_activation_checkpointing_recomputes_activations() -> None:
    model, calls = tiny.tiny_llama(1000), [0]

    def counted(*_: Any) -> None:
        calls[0] += 1

    model.model.layers[0].mlp.register_forward_pre_hook(counted)
    loss_and_gradients(model, TrainConfig())
    assert calls[0] == 1
    loss_and_gradients(model, TrainConfig(activation_checkpointing=True))
    assert calls[0] == 3
    loss_and_gradients(model, TrainConfig())
    assert calls[0] == 4


def test_leaving_the_context_restores_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda forward: forward)
    model = tiny.tiny_llama(1000)
    before = model.config._attn_implementation
    with configured_execution(model, TrainConfig(compile=True, attention="eager", activation_checkpointing=True)):
        assert model.config._attn_implementation == "eager"
        assert "forward" in vars(model.model.layers[1])
    assert model.config._attn_implementation == before != "eager"
    assert "forward" not in vars(model.model.layers[1])


def test_a_replaced_forward_runs_between_hooks_and_is_restored() -> None:
    layer, seen = torch.nn.Linear(2, 2), []
    layer.register_forward_pre_hook(lambda *_: seen.append("before"))
    layer.register_forward_hook(lambda *_: seen.append("after"))
    with replaced_forward(layer, lambda text: seen.append(text)):
        layer("inside")
    assert seen == ["before", "inside", "after"]
    assert layer(torch.zeros(2)).shape == (2,)
    layer.forward = lambda _: "patched"  # type: ignore[assignment, return-value]
    with replaced_forward(layer, lambda _: "inside"):
        assert layer(None) == "inside"
    assert layer(None) == "patched"


@pytest.mark.parametrize("name", ["flash_attention_2", "nothing_like_this"])
def test_an_unavailable_attention_raises_user_error(name: str) -> None:
    with (
        pytest.raises(UserError, match=rf"train.attention: {name} is not available for llama here"),
        configured_execution(tiny.tiny_llama(100), TrainConfig(attention=name)),
    ):
        pass


def _packed_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    """A slow oracle of flash attention for one row. It would treat each of several rows as one example."""
    assert len(query) == 1
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    starts = (options["position_ids"][0] == 0).cumsum(0)
    seen = (starts[:, None] == starts[None]).tril()
    scores = (query @ key.transpose(-1, -2) * options["scaling"]).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2), None


def test_flash_attention_reads_all_rows_as_one() -> None:
    AttentionInterface.register("flash_oracle", _packed_attention)
    model = tiny.tiny_llama(1000).eval()
    ids_BS = torch.arange(24).view(2, 12)
    positions_BS = torch.tensor([[*range(5), *range(7)], [*range(8), *range(4)]])
    expected_BSH = hidden_states(model, ids_BS, positions_BS)
    # set_attn_implementation accepts only implementations from a package or the hub
    model.config._attn_implementation = "flash_oracle"
    found_BSH = hidden_states(model, ids_BS, positions_BS)
    torch.testing.assert_close(found_BSH, expected_BSH)
