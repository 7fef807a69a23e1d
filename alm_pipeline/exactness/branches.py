"""A model's next-token probabilities after the canonical tokens of a text and after sequences that leave them.

Sequences off the path share nearly all of their tokens with the canonical ones. So all of them are computed in one
forward pass: the tokens of the branches come after the canonical ones in the same row, each at the position that it has
in its sequence, and a mask lets it attend only to the tokens before it in its sequence. Some models do not read such a
mask (recurrent ones, kernels without masks, sliding windows shorter than the text). The last branch of every text is
also computed as a row of its own, and where the two differ, all branches of the text are computed as rows of their own.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from alm_pipeline.exactness.prefix_sums import TokenPath
from alm_pipeline.models.head_vocabulary import HeadVocabulary
from alm_pipeline.models.loading import matmul_precision
from alm_pipeline.models.output_head import check_output_head, headless, hidden_states, input_device, output_head
from alm_pipeline.models.tokenizer import LoadedTokenizer

Floats = npt.NDArray[np.float32]
_ROWS_AT_ONCE = 64
_BRANCHES_AT_ONCE = 256
_PLAIN_TOKENS = 4096
_TOLERANCE = {4: 1e-3, 2: 5e-2}
"""by bytes of the dtype: how far hidden states of both ways may be apart, relative to their norm"""


class BranchModel:
    """A loaded model, whose next-token probabilities are needed after many similar sequences."""

    def __init__(self, model: PreTrainedModel, tokenizer: LoadedTokenizer) -> None:
        """Raises UserError if the tokenizer is not the model's, or its logits are not those of its output layer."""
        self.model = model.eval()
        self.rows = HeadVocabulary.of(model, tokenizer).rows
        on_processor = input_device(model).type == "cpu"
        self.head = output_head(model, torch.float32 if on_processor else None, self.rows)
        check_output_head(model, self.head)

    @property
    def vocabulary(self) -> int:
        """The number of tokens that the model can predict."""
        return self.head.vocabulary

    def after(self, canonical: Sequence[int]) -> "TextBranches":
        """Return the next-token probabilities after sequences that begin as these tokens do."""
        return TextBranches(self, canonical)


class TextBranches:
    """The next-token probabilities along one text, and off its canonical path."""

    def __init__(self, model: BranchModel, canonical: Sequence[int]) -> None:
        self._model, self._canonical = model, list(canonical)
        self.is_packed: bool | None = None
        """whether branches are computed in one row; None before the first"""

    @cached_property
    def canonical_rows(self) -> Floats:
        """log P of every next token after each canonical token [T, V]."""
        with torch.inference_mode():
            hidden_TH = hidden_states(self._model.model, self._ids([self._canonical]))[0]
            return np.concatenate(list(self._rows(hidden_TH)))

    def __call__(self, paths: Sequence[TokenPath]) -> Iterator[Floats]:
        """Yield log P of every next token [V] after each sequence."""
        off_path = self._off_path([path for path in paths if path.others])
        return (next(off_path) if path.others else self.canonical_rows[path.kept - 1] for path in paths)

    def _off_path(self, paths: Sequence[TokenPath]) -> Iterator[Floats]:
        for start in range(0, len(paths), _BRANCHES_AT_ONCE):
            with torch.inference_mode():
                blocks = list(self._rows(self._hidden(paths[start : start + _BRANCHES_AT_ONCE])))
            for rows in blocks:
                yield from rows

    def _hidden(self, paths: Sequence[TokenPath]) -> Tensor:
        """[paths, H] the hidden state of each sequence's last token."""
        if self.is_packed is None:
            self.is_packed = self._can_pack(max(paths, key=lambda path: path.kept))
        return self._packed(paths) if self.is_packed else self._plain(paths)

    def _can_pack(self, path: TokenPath) -> bool:
        try:
            packed = self._packed([path])
        except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError):
            return False  # it takes no such mask
        plain, tolerance = self._plain([path]), self._tolerance
        return bool((packed - plain).float().norm() <= tolerance * plain.float().norm())

    @property
    def _tolerance(self) -> float:
        return _TOLERANCE[4 if self._model.model.dtype.itemsize >= 4 else 2]

    def _plain(self, paths: Sequence[TokenPath]) -> Tensor:
        """Compute each sequence as a row of its own, padded on the right."""
        rows = [[*self._canonical[: path.kept], *path.others] for path in paths]
        count = max(1, _PLAIN_TOKENS // max(map(len, rows)))
        return torch.cat([self._plain_batch(rows[start : start + count]) for start in range(0, len(rows), count)])

    def _plain_batch(self, rows: Sequence[list[int]]) -> Tensor:
        width = max(map(len, rows))
        hidden_BTH = hidden_states(self._model.model, self._ids([row + [0] * (width - len(row)) for row in rows]))
        return hidden_BTH[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]

    def _packed(self, paths: Sequence[TokenPath]) -> Tensor:
        """Compute all sequences in one row. Raises whatever a model raises that takes no such mask."""
        tree = _Tree(self._canonical, max((path.kept for path in paths), default=0))
        places = [tree.place(path) for path in paths]
        model = self._model.model
        mask = torch.zeros(1, 1, len(tree.ids), len(tree.ids), dtype=model.dtype)
        mask.masked_fill_(~tree.visible(), torch.finfo(model.dtype).min)
        device = input_device(model)
        output = headless(model)(
            input_ids=self._ids([tree.ids]),
            position_ids=torch.tensor([tree.positions], device=device),
            attention_mask=mask.to(device),
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state[0, places]
        return hidden

    def _ids(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(rows, device=input_device(self._model.model))

    def _rows(self, hidden_NH: Tensor) -> Iterator[Floats]:
        head = self._model.head
        hidden_NH = hidden_NH.to(head.device, head.dtype)
        with matmul_precision("highest"):
            for some in hidden_NH.split(_ROWS_AT_ONCE):
                yield head.logits(some).log_softmax(-1).float().cpu().numpy()


class _Tree:
    """A text's canonical tokens in a row, and after them the tokens of the sequences that leave them."""

    def __init__(self, canonical: Sequence[int], kept: int) -> None:
        self.ids = list(canonical[:kept])
        self.positions = list(range(kept))
        self._kept = [*range(kept)]
        """of each token: the last canonical token that it attends to"""
        self._before: list[tuple[int, ...]] = [()] * kept
        """of each token: the other tokens of its branch before it"""
        self._places: dict[TokenPath, int] = {}

    def place(self, path: TokenPath) -> int:
        """Return the place of a sequence's last token, adding those of its tokens that are not there yet."""
        if not path.others:
            return path.kept - 1
        if (place := self._places.get(path)) is None:
            parent = self.place(TokenPath(path.kept, path.others[:-1]))
            place = self._places[path] = len(self.ids)
            self.ids.append(path.others[-1])
            self.positions.append(self.positions[parent] + 1)
            self._kept.append(path.kept - 1)
            self._before.append((*self._before[parent], parent) if path.others[1:] else ())
        return place

    def visible(self) -> Tensor:
        """[tokens, tokens] whether each token (row) attends to each other one."""
        places = torch.arange(len(self.ids))
        canonical = len(self.ids) - len(self._places)
        visible = (places <= torch.tensor(self._kept)[:, None]) & (places < canonical)
        visible |= torch.eye(len(self.ids), dtype=torch.bool)
        for place, before in enumerate(self._before):
            if before:
                visible[place, list(before)] = True
        return visible
