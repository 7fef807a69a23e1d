"""Hidden states that an engine returns: whether they can be a model's, and what they say of it. Without torch.

Shapes: T tokens of a row, H hidden width.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from alm_pipeline.scoring.served.replies import RowScores, Served, WrongReply

States = npt.NDArray[np.float32]
_BELOW_BFLOAT16, _BELOW_FLOAT16 = np.uint32(0xFFFF), np.uint32(0x1FFF)
"""the bits of a float32 that are 0 if bfloat16, or float16 above its least exponent, holds the number"""
_LEAST_FLOAT16 = np.float32(2.0**-14)


class StatesReader:
    """Looks at hidden states without a head, and gives no scores."""

    top_k = 0

    def read(self, ids: Sequence[int], states_TH: States, /) -> tuple[RowScores, Served]:
        """Raises WrongReply if the states can't be a model's."""
        wrong_T = ~np.isfinite(states_TH).all(-1)
        if wrong_T.any():
            raise WrongReply(f"can't be true: the hidden state of token {int(np.argmax(wrong_T))} is NaN or infinite")
        lengths_T = np.linalg.norm(states_TH.astype(np.float64), axis=-1)
        if states_TH.shape[-1] > 1 and (np.abs(lengths_T - 1) < 1e-3).all():
            raise WrongReply("has normalized hidden states, all of length 1: its version does not know use_activation")
        return RowScores.empty(len(ids), 0), Served(0, _dtype(states_TH), "unknown")


def _dtype(states_TH: States) -> str:
    """Return the dtype that the states were computed in, by what it can't hold."""
    bits = np.ascontiguousarray(states_TH).view(np.uint32)
    if not (bits & _BELOW_BFLOAT16).any():
        return "bfloat16"
    ordinary = np.abs(states_TH) >= _LEAST_FLOAT16
    return "float32" if (bits[ordinary] & _BELOW_FLOAT16).any() else "float16"
