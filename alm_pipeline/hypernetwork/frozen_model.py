"""A model that is not trained, with other tables by token: gradients reach the tables, and nothing else.

The tables replace the model's own during one call (`torch.func.functional_call`). What its class does with embeddings
is unchanged: Gemma multiplies rows by √d, GPT-2 adds positions.

Shapes: B rows, S tokens of a row, N = B·S, V tokens, H hidden width, K boundary tokens.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from alm_pipeline.hypernetwork.networks.pieces import SourceTables
from alm_pipeline.models.output_head import Head, check_output_head, headless, input_device, output_head
from alm_pipeline.scoring.head import NextTokenNumbers, next_token
from alm_pipeline.transfer.swap import embedding_tables
from storage.errors import UserError


class FrozenModel:
    """A model whose embedding, head and bias are arguments of each call."""

    def __init__(self, model: PreTrainedModel, tokens: int) -> None:
        """`tokens` are the source's; further rows of its tables are padding.

        Raises UserError if its head is not linear, or its logits are not those of its output layer.
        """
        check_output_head(model)
        self.model, self.base = model.eval().requires_grad_(False), headless(model)
        head = output_head(model)
        if not isinstance(head, Head):
            raise UserError(f"{model.name_or_path}: its output layer is not linear: its rows can't be exchanged")
        self.head = head
        self.tables = embedding_tables(model)
        self.source = SourceTables.of([table.value for table in self.tables], tokens)
        embedding: Any = model.get_input_embeddings()
        embedding.padding_idx = None  # that row of another vocabulary is an ordinary token, which has a gradient
        names = {id(value): name for name, value in self.base.named_parameters()}
        self._embedding_name = names[id(embedding.weight)]

    @property
    def device(self) -> torch.device:
        return input_device(self.model)

    def next_tokens(
        self,
        tables: Sequence[Tensor],
        ids_BS: Tensor,
        boundary_ids_K: Tensor,
        next_ids_N: Tensor | None = None,
        raised_V: Tensor | None = None,
    ) -> NextTokenNumbers:
        """Return the numbers of each position's next token in the vocabulary of the tables, which are as `tables`.

        `next_ids_N` are the next tokens (None: the rows are shifted), and `raised_V` is added to the logits.
        Differentiable with respect to the tables.
        """
        dtype = self.model.dtype
        embedding_VH, *others = (table.to(dtype) for table in tables)
        state = {self._embedding_name: embedding_VH}
        output = functional_call(self.base, state, (), {"input_ids": ids_BS.to(self.device), "use_cache": False})
        hidden_NH = output.last_hidden_state.flatten(0, 1)
        head = self._head(embedding_VH, others, raised_V)
        next_ids_N = ids_BS.flatten().roll(-1) if next_ids_N is None else next_ids_N
        return next_token(hidden_NH, next_ids_N.to(self.device), head, boundary_ids_K.to(self.device))

    def _head(self, embedding_VH: Tensor, others: Sequence[Tensor], raised_V: Tensor | None) -> Head:
        weight_VH, bias_V = embedding_VH, None
        for table, value in zip(self.tables[1:], others, strict=True):
            if table.value.dim() == 1:
                bias_V = value.squeeze(-1)
            else:
                weight_VH = value
        if raised_V is not None:
            raised_V = raised_V.to(weight_VH) / self.head.scale
            bias_V = raised_V if bias_V is None else bias_V + raised_V
        return replace(self.head, weight_VH=weight_VH, bias_V=bias_V, rows=len(weight_VH))
