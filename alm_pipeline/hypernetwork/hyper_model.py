"""A model that changes its tokenizer on the fly: `HyperModel(model, hypernetwork).use(tokenizer)`.

The tables of the tokenizers that were used last are kept. Switching points the model's parameters at others and copies
nothing, so the model that goes back to a tokenizer is the same to the bit. A batch may have a tokenizer per row.

    hyper = HyperModel("demo:smollm2-135m-instruct", "alm-data/hypernetworks/NAME")
    model = hyper.use("Qwen/Qwen3-0.6B")            # an ordinary transformers model, until the next `use`
    texts = hyper.generate([("1 + 1 =", "Qwen/Qwen3-0.6B"), ("def load(", None)], max_tokens=20)

Shapes: B rows, T tokens of a row with padding, H hidden width, V tokens of a row's tokenizer.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.func import functional_call
from transformers import DynamicCache, PreTrainedModel

from alm_pipeline.hypernetwork.networks.hypernetwork import Hypernetwork
from alm_pipeline.models.configuration import text_config
from alm_pipeline.models.head_vocabulary import check_rows
from alm_pipeline.models.output_head import Head, headless, output_head
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.models.tokenizer import LoadedTokenizer
from alm_pipeline.transfer.carry_over import carry_over
from alm_pipeline.transfer.initialization import Initialization
from alm_pipeline.transfer.swap import embedding_tables, new_rows
from alm_pipeline.transfer.zero_step import exchanged_tokenizer
from alm_pipeline.vocabulary.framing import plain_backend
from storage.errors import UserError

Prompt = tuple[str, str | None]
"""a text, and the name of its tokenizer: None is the model's own"""


@dataclass(frozen=True)
class _Vocabulary:
    """A tokenizer with all of the model that depends on it."""

    tokenizer: LoadedTokenizer
    backend: Tokenizer
    tables: list[nn.Parameter]
    """in the order of `embedding_tables`; the embedding with the rows that the model's class adds"""
    settings: list[dict[str, Any]]
    """of the model's configurations"""

    @property
    def ends(self) -> set[int]:
        """The ids that end a text."""
        ids = self.settings[-1].get("eos_token_id")
        return set(ids if isinstance(ids, list) else [] if ids is None else [ids])


class HyperModel:
    """A model in memory with a hypernetwork, and the tables of several tokenizers."""

    def __init__(
        self,
        model: str | ModelReference,
        hypernetwork: str,
        *,
        dtype: str | None = None,
        device: str | None = None,
        kept: int = 8,
        trust_remote_code: bool = False,
    ) -> None:
        """`dtype` is the weights' own by default; `kept` is the number of tokenizers whose tables stay in memory.

        Raises UserError if the hypernetwork is another model's, or if an adapter or a quantized head is in the way.
        """
        reference = ModelReference(model, trust_remote_code) if isinstance(model, str) else model
        reference.refuse_adapter()
        self._initialization = Initialization("hypernetwork", hypernetwork=Hypernetwork.load(hypernetwork))
        self._initialization.require_source(reference)
        self.model: PreTrainedModel = reference.load(dtype or reference.weights_dtype, device=device)
        self.model.requires_grad_(False)
        self._source, self._kept = reference.tokenizer, kept
        self._modules = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        if not isinstance(output_head(self.model), Head):
            raise UserError(f"{reference.name}: its output layer is not linear: its rows can't be exchanged")
        self._own = self._vocabulary_in_use(self._source)
        self._added = self._own.tables[0][text_config(self.model.config).vocab_size :]
        self._vocabularies: OrderedDict[str, _Vocabulary] = OrderedDict()

    @property
    def tokenizers(self) -> list[str]:
        """The names of the tokenizers whose tables are in memory, besides the model's own; the last used last."""
        return list(self._vocabularies)

    def tokenizer(self, name: str | None) -> LoadedTokenizer:
        """Return a tokenizer as the model uses it: with the model's special tokens if it lacks its own."""
        return self._vocabulary(name).tokenizer

    def use(self, name: str | None) -> PreTrainedModel:
        """Give the model this tokenizer until the next call, and return it; None is its own tokenizer.

        `name` is a local folder, a name on the Hub or `demo:NAME`. What a cache holds of earlier tokens stays right for
        the text before: only the tokens after it are new ids. Raises UserError if the tokenizer can't be loaded.
        """
        self._put(self._vocabulary(name))
        return self.model

    def _vocabulary(self, name: str | None) -> _Vocabulary:
        if name is None:
            return self._own
        if name not in self._vocabularies:
            self._vocabularies[name] = self._made(LoadedTokenizer(name))
        self._vocabularies.move_to_end(name)
        while len(self._vocabularies) > self._kept:
            self._vocabularies.popitem(last=False)
        return self._vocabularies[name]

    def _made(self, named: LoadedTokenizer) -> _Vocabulary:
        """Make the tables and the settings of a tokenizer; the model has its own tokenizer meanwhile, and afterward."""
        self._put(self._own)
        target = LoadedTokenizer.of(exchanged_tokenizer(self._source, named))
        rows, _ = new_rows(self.model, self._source, target, self._initialization)
        tables = [nn.Parameter(value, requires_grad=False) for value in rows]
        tokens = len(rows[0])
        if len(self._added):
            tables[0] = nn.Parameter(torch.cat([rows[0], self._added]), requires_grad=False)
        carry_over(self.model, self._source.fast, target.fast)
        for config in (self.model.config, text_config(self.model.config)):
            if hasattr(config, "vocab_size"):
                config.vocab_size = tokens
        made = _Vocabulary(target, plain_backend(target.fast.backend_tokenizer), tables, self._settings())
        self._put(self._own)
        return made

    def _vocabulary_in_use(self, tokenizer: LoadedTokenizer) -> _Vocabulary:
        tables = [table.value for table in embedding_tables(self.model)]
        return _Vocabulary(tokenizer, plain_backend(tokenizer.fast.backend_tokenizer), tables, self._settings())

    def _settings(self) -> list[dict[str, Any]]:
        return [copy.deepcopy(_plain(config)) for config in self._configs()]

    def _configs(self) -> list[Any]:
        return [self.model.config, text_config(self.model.config), self.model.generation_config]

    def _put(self, vocabulary: _Vocabulary) -> None:
        """Point the model at a tokenizer's tables and settings."""
        embedding, head = self._modules
        for table, value in zip(embedding_tables(self.model), vocabulary.tables, strict=True):
            layer, name = (head, table.name.rsplit(".", 1)[-1]) if table.of_head else (embedding, "weight")
            is_tied = not table.of_head and getattr(head, "weight", None) is embedding.weight
            setattr(layer, name, value)
            if is_tied:
                head.weight = value
        rows: Any = embedding.weight
        embedding.num_embeddings, embedding.padding_idx = len(rows), None  # type: ignore[assignment]
        head.out_features = len(head.weight)
        for config, settings in zip(self._configs(), vocabulary.settings, strict=True):
            vars(config).update(copy.deepcopy(settings))

    @torch.inference_mode()
    def logits(self, rows: Sequence[tuple[str | None, Sequence[int]]]) -> list[Tensor]:
        """Return the logits [T, V] of each row of ids, beside the name of its tokenizer, from one pass of the model."""
        vocabularies = [self._vocabulary(name) for name, _ in rows]
        longest = max(len(ids) for _, ids in rows)
        embedded = [self._embedded(v, ids) for v, (_, ids) in zip(vocabularies, rows, strict=True)]
        mask_BT = torch.zeros(len(rows), longest, dtype=torch.int64, device=self.model.device)
        states_BTH = embedded[0].new_zeros(len(rows), longest, embedded[0].shape[-1])
        for row, states_TH in enumerate(embedded):
            states_BTH[row, : len(states_TH)] = states_TH
            mask_BT[row, : len(states_TH)] = 1
        output = headless(self.model)(inputs_embeds=states_BTH, attention_mask=mask_BT, use_cache=False)
        hidden_BTH = output.last_hidden_state
        return [
            self._head(vocabulary).logits(hidden_BTH[row, : len(ids)])
            for row, (vocabulary, (_, ids)) in enumerate(zip(vocabularies, rows, strict=True))
        ]

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], max_tokens: int = 200) -> list[str]:
        """Return the likeliest continuation of each prompt, in one batch, whatever the tokenizers of its rows.

        A row ends at its tokenizer's end of text or turn, or after `max_tokens` tokens.
        """
        if not prompts:
            return []
        vocabularies = [self._vocabulary(name) for _, name in prompts]
        rows = [self._encoded(v, text, name) for v, (text, name) in zip(vocabularies, prompts, strict=True)]
        batch = _Continuation.of([self._embedded(v, ids) for v, ids in zip(vocabularies, rows, strict=True)])
        heads, written = [self._head(v) for v in vocabularies], [list[int]() for _ in rows]
        finished = [False] * len(rows)
        base, cache = headless(self.model), DynamicCache(config=self.model.config)
        for _ in range(max_tokens):
            output = base(**batch.inputs(), past_key_values=cache, use_cache=True)
            hidden_BH = output.last_hidden_state[:, -1]
            ids = [int(head.logits(hidden_BH[row : row + 1]).argmax()) for row, head in enumerate(heads)]
            for row, id_ in enumerate(ids):
                finished[row] = finished[row] or id_ in vocabularies[row].ends
                if not finished[row]:
                    written[row].append(id_)
            if all(finished):
                break
            states = [self._embedded(v, [id_]) for v, id_ in zip(vocabularies, ids, strict=True)]
            batch = batch.followed_by(torch.stack(states))
        return [v.backend.decode(ids, skip_special_tokens=True) for v, ids in zip(vocabularies, written, strict=True)]

    def _encoded(self, vocabulary: _Vocabulary, text: str, name: str | None) -> list[int]:
        ids: list[int] = vocabulary.backend.encode(text).ids
        if not ids:
            raise UserError(f"{name or self._source.name}: the prompt has no token: give it some text")
        if vocabulary is self._own:
            self._put(self._own)
            check_rows(ids, self.model, vocabulary.tokenizer.fast, self._source.name)
        return ids

    def _embedded(self, vocabulary: _Vocabulary, ids: Sequence[int]) -> Tensor:
        """[T, H] as the model's class embeds ids: Gemma scales them."""
        ids_T = torch.tensor(ids, device=self.model.device)
        states: Tensor = functional_call(self._modules[0], {"weight": vocabulary.tables[0]}, (ids_T,))
        return states

    def _head(self, vocabulary: _Vocabulary) -> Head:
        head = output_head(self.model)
        assert isinstance(head, Head)
        weight_VH, bias_V = vocabulary.tables[0], None
        for table, value in zip(embedding_tables(self.model)[1:], vocabulary.tables[1:], strict=True):
            if table.value.dim() == 1:
                bias_V = value
            else:
                weight_VH = value
        own = min(vocabulary.tokenizer.view.size, len(weight_VH)) if vocabulary is not self._own else head.rows
        return replace(head, weight_VH=weight_VH, bias_V=bias_V, rows=own)


@dataclass(frozen=True)
class _Continuation:
    """The inputs of the next pass over a batch, whose rows are padded on the left."""

    states_BTH: Tensor
    mask_BT: Tensor
    """of all tokens so far"""
    positions_BT: Tensor

    @classmethod
    def of(cls, rows: Sequence[Tensor]) -> "_Continuation":
        """Return the first pass, over these rows [T, H]."""
        longest = max(map(len, rows))
        states_BTH = rows[0].new_zeros(len(rows), longest, rows[0].shape[-1])
        mask_BT = torch.zeros(len(rows), longest, dtype=torch.int64, device=rows[0].device)
        for row, states_TH in enumerate(rows):
            states_BTH[row, longest - len(states_TH) :] = states_TH
            mask_BT[row, longest - len(states_TH) :] = 1
        return cls(states_BTH, mask_BT, (mask_BT.cumsum(-1) - 1).clamp(min=0))

    def inputs(self) -> dict[str, Tensor]:
        return {
            "inputs_embeds": self.states_BTH,
            "attention_mask": self.mask_BT,
            "position_ids": self.positions_BT,
        }

    def followed_by(self, states_B1H: Tensor) -> "_Continuation":
        """Return the pass over one more token of each row."""
        mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(len(self.mask_BT), 1)], -1)
        return _Continuation(states_B1H, mask_BT, self.positions_BT[:, -1:] + 1)


def _plain(config: Any) -> dict[str, Any]:
    """Return the plain values of a configuration: what may name ids or sizes. Its parts have entries of their own."""
    kinds = (int, str, float, bool, list, dict, type(None))
    return {name: value for name, value in vars(config).items() if isinstance(value, kinds)}
