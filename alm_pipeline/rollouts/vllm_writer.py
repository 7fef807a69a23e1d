"""A model that vLLM runs in this process's environment writes; its own tokens are kept, as of `LocalWriter`.

Each text has a seed of its own, made as its random numbers are where transformers writes. vLLM draws otherwise with it,
so the texts are others, and its sums may differ in their last bits with the texts that it computes at the same time.
"""

import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np

from alm_pipeline.config import SamplingConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.rollouts.local_writer import EncodedPrompt, Ids, LocalWriter
from alm_pipeline.rollouts.sampling import row_seed
from storage.errors import UserError


class VllmWriter(LocalWriter):
    """A model that is loaded here by vLLM, which batches the prompts itself."""

    def release(self) -> None:
        """Take the model out of memory, with the process that vLLM runs it in."""
        if llm := vars(self).pop("_loaded", None):
            llm.llm_engine.engine_core.shutdown()

    @property
    def _at_once(self) -> int:
        return sys.maxsize

    @cached_property
    def _loaded(self) -> Any:
        require_engine(self.sampling)
        from vllm import LLM, EngineArgs
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        code = ["--trust-remote-code"] if self.model.trust_remote_code else []
        arguments = [
            *("--model", str(self.model.folder), "--skip-tokenizer-init", *code),
            *("--dtype", self.sampling.dtype, "--max-num-seqs", str(self.sampling.at_once)),
            # no setting that comes with the model has a part in what is drawn
            *("--generation-config", "vllm", *self.sampling.vllm_arguments),
        ]
        parsed = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(arguments)
        return LLM.from_engine_args(EngineArgs.from_cli_args(parsed))

    def _generate(self, prompts: Sequence[EncodedPrompt], rounds: Sequence[int]) -> Iterator[Ids]:
        llm = self._loaded
        from vllm import SamplingParams

        sampling, known = self.sampling, len(self.model.tokenizer.view.special)
        settings = {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or 0,
            "stop_token_ids": self._end_ids,
            "detokenize": False,
            # rows of the embedding beyond the vocabulary are not drawn
            "allowed_token_ids": None if known >= self.model.vocabulary_rows else list(range(known)),
        }
        parameters = [
            SamplingParams(seed=row_seed(sampling.seed, round_, prompt.prompt.id), **settings)
            for prompt, round_ in zip(prompts, rounds, strict=True)
        ]
        inputs = [{"prompt_token_ids": prompt.ids.tolist()} for prompt in prompts]
        for output in llm.generate(inputs, parameters, use_tqdm=False):
            yield np.array(output.outputs[0].token_ids, np.int32)


def require_engine(sampling: SamplingConfig) -> None:
    """Raise UserError if what runs the model is not installed."""
    if sampling.engine == "vllm" and find_spec("vllm") is None:
        raise UserError(
            "rounds.sampling.engine: vLLM is not installed in this environment: install it here, or set the engine to "
            "transformers"
        )


def require_room(model: ModelReference, sampling: SamplingConfig) -> None:
    """Raise UserError if no prompt fits into a model's context with the most tokens that may follow it."""
    length = model.context_length
    if length is not None and sampling.max_tokens >= length:
        raise UserError(
            f"rounds.sampling.max_tokens: {sampling.max_tokens:,} tokens leave no room for a prompt in the context of "
            f"{model.label}, {length:,} tokens: set it to less"
        )


def model_writer(model: ModelReference, sampling: SamplingConfig) -> LocalWriter:
    """Return what lets a model write in this process, by `sampling.engine`. Raises UserError as `require_room`."""
    require_room(model, sampling)
    return (VllmWriter if sampling.engine == "vllm" else LocalWriter)(model, sampling)
