"""The headless model and its output head, which turns hidden states into logits piece by piece, outside of the model.

Everything that needs a model's hidden states calls `hidden_states`, or `headless` for a cache.

Shapes: N positions, H hidden width, V vocabulary rows, P rows of a piece. After the last layer, models scale and cap
their logits, and pad their vocabularies. transformers has no common interface for this. So this module lists the known
names of these settings, and `check_output_head` refuses a model whose own logits differ.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from alm_pipeline.models.configuration import text_config
from storage.errors import UserError

# the names in configurations: Cohere, Falcon-H1, Muse; Granite and MiniCPM, Inkling; Gemma, RecurrentGemma, xLSTM
_MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
# model types that multiply by their "divisor"
_MULTIPLIED_BY_DIVISOR = ("hyperclovax", "hyperclovax_vision_v2")
# model types that state a scale or a cap, in their text model's part, and use neither
_NEITHER_SCALED_NOR_CAPPED = ("aya_vision", "cohere2_vision", "gemma3", "mpt", "shieldgemma2")


@dataclass(frozen=True)
class Head:
    """A linear output layer: its logits are softcap · tanh(scale · (h Wᵀ + b) / softcap)."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    rows: int | None = None
    """the number of tokens; the rows after them are padding, and impossible (None: all rows are tokens)"""

    @property
    def dtype(self) -> torch.dtype:
        return self.weight_VH.dtype

    @property
    def device(self) -> torch.device:
        return self.weight_VH.device

    @property
    def vocabulary(self) -> int:
        return min(self.weight_VH.shape[0], self.rows or self.weight_VH.shape[0])

    def logits(self, hidden_NH: Tensor, rows: Tensor | slice | None = None) -> Tensor:
        """[N, P] the logits of P rows (default: all tokens), in float32 or better."""
        rows = slice(self.vocabulary) if rows is None else rows
        return _scaled_and_capped(self.outputs(hidden_NH, rows), self.scale, self.softcap)

    def outputs(self, hidden_NH: Tensor, rows: Tensor | slice) -> Tensor:
        """[N, P] the layer's own outputs of P rows, neither scaled nor capped, in the head's dtype.

        Without gradients, a GPU's products of two bytes per number are returned in float32, as it sums them.
        """
        weight_PH, bias_P = self.weight_VH[rows], None if self.bias_V is None else self.bias_V[rows]
        is_plain = hidden_NH.dim() == 2 and hidden_NH.dtype == self.dtype
        if torch.is_grad_enabled() or not (is_plain and _sums_are_returned(self.device, self.dtype)):
            return F.linear(hidden_NH, weight_PH, bias_P)
        outputs_NP = torch.mm(hidden_NH, weight_PH.T, out_dtype=torch.float32)
        return outputs_NP if bias_P is None else outputs_NP.add_(bias_P)

    def token_logits(self, hidden_NH: Tensor, ids_N: Tensor) -> Tensor:
        """[N] the logit of one token at each position, in float32 or better."""
        logits_N = (at_least_float32(hidden_NH) * at_least_float32(self.weight_VH[ids_N])).sum(-1)
        if self.bias_V is not None:
            logits_N = logits_N + self.bias_V[ids_N]
        return _scaled_and_capped(logits_N, self.scale, self.softcap)


@dataclass(frozen=True)
class LayerHead:
    """Any other output layer, scaled and capped alike: with adapters, quantized, or several layers in a row."""

    layer: nn.Module
    parameters: dict[str, Tensor]
    vocabulary: int
    """the number of tokens; the layer's outputs after them are impossible"""
    scale: float = 1.0
    softcap: float | None = None

    @property
    def dtype(self) -> torch.dtype:
        floating = (value.dtype for value in self.parameters.values() if value.is_floating_point())
        return next(floating, torch.float32)

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """[N, vocabulary] the logits, in float32 or better."""
        logits_NV: Tensor = torch.func.functional_call(self.layer, self.parameters, (hidden_NH,))
        return _scaled_and_capped(logits_NV[:, : self.vocabulary], self.scale, self.softcap)


@cache
def _sums_are_returned(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device returns products of factors in bfloat16 or float16 in float32."""
    if device.type != "cuda" or dtype.itemsize != 2:
        return False
    factor = torch.ones(16, 16, dtype=dtype, device=device)
    try:
        return torch.mm(factor, factor, out_dtype=torch.float32).dtype == torch.float32
    except (RuntimeError, TypeError):
        return False


def _scaled_and_capped(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    logits = at_least_float32(logits)
    if scale != 1.0:
        logits = logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def output_head(model: PreTrainedModel, dtype: torch.dtype | None = None, rows: int | None = None) -> Head | LayerHead:
    """Return the model's head in `dtype` (None: the model's own), with only the first `rows` tokens possible.

    `rows` is the tokenizer's highest id + 1; None means every row of the layer. Raises UserError if the model has no
    output layer.
    """
    model = _without_adapters_shell(model)
    layer, config = _trained_copy(model.get_output_embeddings()), text_config(model.config)
    if layer is None:
        raise UserError(f"{model.config.model_type}: has no output layer, so it has no next-token probabilities")
    limits = [limit for limit in (rows, getattr(config, "unpadded_vocab_size", None)) if limit]
    rows = min(limits, default=None)
    is_plain = model.config.model_type in _NEITHER_SCALED_NOR_CAPPED
    scale, softcap = (1.0, None) if is_plain else (_scale(config), _first(config, _CAPS))
    parameters = {name: _cast(value, dtype) for name, value in layer.named_parameters()}
    # not isinstance: a quantized layer is also a Linear, but its weight is packed
    if type(layer).forward is nn.Linear.forward:
        return Head(parameters["weight"], parameters.get("bias"), scale, softcap, rows)
    return LayerHead(layer, parameters, min(rows or config.vocab_size, config.vocab_size), scale, softcap)


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def _without_adapters_shell(model: Any) -> Any:
    """Return the transformers model inside peft's model, with its adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _trained_copy(layer: Any) -> Any:
    """Return the active copy of a layer that peft trains as a whole (`modules_to_save`); any other layer as it is."""
    copies, active = getattr(layer, "modules_to_save", None), list(getattr(layer, "active_adapters", []))
    if not isinstance(copies, nn.ModuleDict) or getattr(layer, "disable_adapters", True) or len(active) != 1:
        return layer
    return dict(copies).get(active[0], layer)


def _scale(config: Any) -> float:
    times, divisor = _first(config, _MULTIPLIERS) or 1.0, _first(config, _DIVISORS) or 1.0
    return times * divisor if config.model_type in _MULTIPLIED_BY_DIVISOR else times / divisor


def _first(config: Any, names: tuple[str, ...]) -> float | None:
    return next((float(value) for name in names if (value := getattr(config, name, None))), None)


def hidden_states(model: PreTrainedModel, token_ids_BS: Tensor, position_ids_BS: Tensor | None = None) -> Tensor:
    """[B, S, H] the head's inputs; a position of 0 begins a new example in the row (None: a row is one example)."""
    base, shape = headless(model), token_ids_BS.shape
    if position_ids_BS is None:
        return base(input_ids=token_ids_BS, use_cache=False).last_hidden_state  # type: ignore[no-any-return]
    if is_flash_attention_requested(base.config):
        # flash attention separates examples by positions only in a single row; it takes each of several rows for one
        token_ids_BS, position_ids_BS = token_ids_BS.reshape(1, -1), position_ids_BS.reshape(1, -1)
    output = base(input_ids=token_ids_BS, position_ids=position_ids_BS, use_cache=False)
    hidden: Tensor = output.last_hidden_state
    return hidden.view(*shape, -1)


def headless(model: PreTrainedModel) -> Any:
    """Return the part of the model that computes the hidden states for its head.

    Of a model that also reads images or sound, it is the text model: in training, some of the wholes ask for inputs
    that distinguish images from text (Gemma 3).
    """
    model = _without_adapters_shell(model)
    part: Any = model.base_model if text_config(model.config) is model.config else model.get_decoder()
    while getattr(part, "lm_head", None) is not None:
        # some name a base that they do not have, and are then their own base (Llama 4's and Mllama's text models)
        inner = getattr(part, "model", None)
        if inner is None:
            break
        part = inner
    return part


def input_device(model: PreTrainedModel) -> torch.device:
    """Return the device for token ids. If the model is spread over devices, accelerate's hooks move everything else."""
    device: Any = model.get_input_embeddings().weight.device
    return torch.device("cpu") if device.type == "meta" else device


@torch.no_grad()
def check_output_head(
    model: PreTrainedModel,
    head: Head | LayerHead | None = None,
    hidden_states_of: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Raises UserError if the head's logits of a few tokens differ from the model's own, or if they are not finite.

    And if its hidden states change with the tokens after them.

    The tolerance is 5 % of the largest logit in bfloat16 and float16, and 0.1 % in float32. Rounding differs by less,
    and a missing scale or cap by more. Call it once after loading a model. `hidden_states_of` is how the caller
    computes hidden states from ids [B, S] (None: `hidden_states`).
    """
    training, head = model.training, head or output_head(model)
    model.eval()
    try:
        difference, tolerance = _difference_from_own_logits(model, head, hidden_states_of)
        if not difference <= tolerance:
            raise UserError(
                f"{_described(model)}: its logits differ from those of its output layer on its last hidden states, "
                "so this architecture cannot be scored or trained yet: use a decoder-only language model"
            )
        if not _change_by_a_later_token(model, hidden_states_of) <= (1e-4 if model.dtype.itemsize >= 4 else 2e-2):
            raise UserError(
                f"{_described(model)}: its hidden states change with the tokens after them, so it does not predict "
                "the next token from those before it: use a decoder-only language model"
            )
    finally:
        model.train(training)


def _described(model: PreTrainedModel) -> str:
    """Name a model in an error: its type, and where it was loaded from."""
    name = model.config.name_or_path
    return f"{name} ({model.config.model_type})" if name else str(model.config.model_type)


def _difference_from_own_logits(
    model: PreTrainedModel, head: Head | LayerHead, hidden_states_of: Callable[[Tensor], Tensor] | None
) -> tuple[float, float]:
    """Return (largest difference, tolerance)."""
    ids_BS = torch.arange(min(8, head.vocabulary), device=input_device(model))[None]
    try:
        hidden_BSH = hidden_states_of(ids_BS) if hidden_states_of else hidden_states(model, ids_BS, ids_BS)
        head_NV = head.logits(hidden_BSH[0].to(head.device, head.dtype))
        own_NV = model(input_ids=ids_BS, use_cache=False).logits[0, :, : head.vocabulary].to(head_NV)
    except (AttributeError, TypeError, RuntimeError, ValueError):
        return float("inf"), 0.0  # not a causal language model: it has other inputs or outputs
    if head_NV.shape != own_NV.shape:
        return float("inf"), 0.0
    _check_finite(model, hidden_BSH, own_NV)
    # a logit may be -inf on both sides
    difference_NV = (head_NV - own_NV).abs().masked_fill(head_NV == own_NV, 0)
    share = 1e-3 if model.dtype.itemsize >= 4 else 5e-2
    return float(difference_NV.max()), share * float(own_NV[own_NV.isfinite()].abs().max())


def _check_finite(model: PreTrainedModel, hidden_BSH: Tensor, own_NV: Tensor) -> None:
    """Raise UserError if the hidden states are not finite, or the logits NaN or infinite: nothing can be compared."""
    named = {"hidden states": hidden_BSH.isfinite().all(), "logits": ~(own_NV.isnan() | (own_NV == torch.inf)).any()}
    wrong = [name for name, is_right in named.items() if not is_right] or []
    if wrong or not own_NV.isfinite().any():
        raise UserError(
            f"{model.name_or_path or model.config.model_type}: its {' and '.join(wrong or ['logits'])} of a few tokens "
            f"are NaN or infinite in {str(model.dtype).removeprefix('torch.')}: load it in bfloat16 or float32 "
            "(score.dtype, or --dtype of a command); if they stay so, its weights are damaged"
        )


def _change_by_a_later_token(model: PreTrainedModel, hidden_states_of: Callable[[Tensor], Tensor] | None) -> float:
    """Return how much another token changes the hidden states before it, relative to their largest norm.

    Tokens follow it, and not few: XLM takes as many of the last ones for padding as there are padding tokens anywhere.
    """
    ids_BS = torch.tensor([[1, 2, 3, 4, 6, 7, 8, 9], [1, 2, 3, 5, 6, 7, 8, 9]])
    ids_BS = ids_BS.remainder(text_config(model.config).vocab_size).to(input_device(model))
    hidden_BSH = hidden_states_of(ids_BS) if hidden_states_of else hidden_states(model, ids_BS)
    first_SH, second_SH = hidden_BSH[:, :3].float()
    # of the longest: the states of a padding token are zero in some models (OLMo)
    longest = first_SH.norm(dim=-1).max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((first_SH - second_SH).norm(dim=-1).max() / longest)
