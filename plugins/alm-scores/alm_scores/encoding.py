"""The plugin's arithmetic: from logits to numbers that an engine returns as the largest ones of each row.

Shapes: N positions, V logits of a row, K boundary tokens.
"""

import math

import torch
from torch import Tensor

from alm_scores.file import PluginError, ServedVocabulary

DTYPES = ("other", "float32", "bfloat16", "float16")
QUANTIZATIONS = (
    *("unknown", "none", "other", "awq", "awq_marlin", "gptq", "gptq_marlin", "fp8", "fbgemm_fp8"),
    *("compressed-tensors", "bitsandbytes", "gguf", "modelopt", "modelopt_fp4", "mxfp4", "mxfp8", "torchao", "quark"),
    *("experts_int8", "inc"),
)
"""what a code can say, by its number; a new one is added at the end"""
UNIT = 2.0**-24
COARSE_UNIT = 2.0**-15
LEAST = UNIT / 2
"""what the third carrier holds: above every log-probability, below every code"""
_LOG2_E = math.log2(math.e)
_LEAST_LOG_SUM = -40.0
"""parts below 2^-126 of the largest are 0, which nothing above e^-40 notices"""
_PIECE_ELEMENTS = 2**25
_PROCESSOR_PIECE_ELEMENTS = 2**20
"""logits that are computed at a time, so that copies stay small; on a processor, so that they stay in its cache"""


def code(vocabulary: ServedVocabulary, dtype: str, quantization: str | None) -> float:
    """Return what is served as a number in (0, 0.5] that float32 holds exactly: 16 bits of the hash, dtype, method."""
    known_dtype = DTYPES.index(dtype) if dtype in DTYPES else 0
    method = quantization or "none"
    known_method = QUANTIZATIONS.index(method if method in QUANTIZATIONS else "other")
    return ((int(vocabulary.hash[:4], 16) << 7 | known_dtype << 5 | known_method) + 1) * UNIT


def coarse_code(vocabulary: ServedVocabulary) -> float:
    """Return 14 bits of the hash as a number in (0, 0.5], for an engine that subtracts up to some 100 in float32."""
    return ((int(vocabulary.hash[:4], 16) >> 2) + 1) * COARSE_UNIT


def check_width(width: int, vocabulary: ServedVocabulary) -> None:
    """Raise PluginError if the model has another number of logits than the file's."""
    if width != vocabulary.width:
        raise PluginError(
            f"alm-scores: the model has {width} logits, and its file is of a model with {vocabulary.width}: write the "
            "file of this model with `alm serve MODEL --file FILE`"
        )


class Encoder:
    """Replaces logits by log-probabilities, with what `ServedVocabulary` asks for in its three carriers."""

    def __init__(self, vocabulary: ServedVocabulary) -> None:
        self.vocabulary = vocabulary
        self._ids: dict[torch.device, Tensor] = {}
        self._mask_V: Tensor | None = None

    def __call__(self, logits_NV: Tensor, number: float) -> Tensor:
        """[N, V] float32: log p, at most 0, of each token, and −∞ for padding; then the carriers.

        float32 logits are overwritten. The carriers hold 1 − log P(boundary), the code, and `LEAST`. Raises PluginError
        if the vocabulary is not that of the logits.
        """
        check_width(logits_NV.shape[-1], self.vocabulary)
        result_NV = logits_NV.float()
        elements = _PROCESSOR_PIECE_ELEMENTS if result_NV.device.type == "cpu" else _PIECE_ELEMENTS
        for piece_NV in result_NV.view(-1, self.vocabulary.width).split(max(1, elements // self.vocabulary.width)):
            self._encode(piece_NV, number)
        return result_NV

    def _encode(self, logits_NV: Tensor, number: float) -> None:
        tokens_NV, ids_K = logits_NV[:, : self.vocabulary.rows], self._boundary_ids(logits_NV.device)
        if logits_NV.device.type == "cpu":
            boundary_N = normalize_in_cache(tokens_NV, ids_K, self._mask())
        else:
            boundary_N = normalize(tokens_NV, ids_K)
        logits_NV[:, self.vocabulary.rows :] = -torch.inf
        first, second, third = self.vocabulary.carriers
        logits_NV[:, first] = 1 - boundary_N
        logits_NV[:, second] = number
        logits_NV[:, third] = LEAST

    def _boundary_ids(self, device: torch.device) -> Tensor:
        if device not in self._ids:
            self._ids[device] = torch.tensor(self.vocabulary.boundary_ids, device=device)
        return self._ids[device]

    def _mask(self) -> Tensor:
        """[rows] 1 for a boundary token, in a processor's memory."""
        if self._mask_V is None:
            self._mask_V = torch.zeros(self.vocabulary.rows)
            self._mask_V[list(self.vocabulary.boundary_ids)] = 1
        return self._mask_V


def normalize(logits_NV: Tensor, boundary_ids_K: Tensor) -> Tensor:
    """[N] log P(boundary), at most 0; the logits become log-probabilities, at most 0. Nothing waits for the device."""
    logprobs_NV = logits_NV.log_softmax(-1)  # never above 0
    logits_NV.copy_(logprobs_NV)
    # a sum of rounded parts can be above 0
    return logprobs_NV.index_select(1, boundary_ids_K).logsumexp(-1).clamp_(max=0)


def normalize_in_cache(logits_NV: Tensor, boundary_ids_K: Tensor, mask_V: Tensor) -> Tensor:
    """As `normalize`, in half of a processor's time and nearer to float64: exp2 and sums in pairs, and no gathering.

    Where boundary tokens are so unlikely that their sum loses some of them, it is computed again beside their largest.
    """
    logits_NV -= logits_NV.amax(-1, keepdim=True)
    parts_NV = (logits_NV * _LOG2_E).exp2_()
    sums_N = parts_NV.sum(-1)
    boundary_N = (parts_NV.mul_(mask_V).sum(-1) / sums_N).log_().clamp_(max=0)
    logits_NV -= sums_N.log_()[:, None]  # the sum is at least 1, so this is never above 0
    for row in (boundary_N < _LEAST_LOG_SUM).nonzero().flatten().tolist():
        boundary_N[row] = logits_NV[row, boundary_ids_K].logsumexp(-1)
    return boundary_N


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
