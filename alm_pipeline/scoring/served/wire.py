"""What is asked of a server over HTTP, and what it answers: vLLM's and SGLang's own APIs, which stay as they are.

SGLang's was written from its source and not run here: `managers/io_struct.py` (`GenerateReqInput`),
`managers/tokenizer_manager.py` (`convert_logprob_style`, `detokenize_logprob_tokens`) and
`layers/logits_processor.py` (`compute_temp_top_p_normalized_logprobs`) of sgl-project/sglang.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from alm_pipeline.scoring.served.replies import Values, WrongReply
from alm_pipeline.scoring.served.vocabulary import CARRIERS

_TOKEN = "token_id:"


class Api(Protocol):
    """One server's way to ask for what the numbers of a row of tokens are read from."""

    path: ClassVar[str]

    def body(self, ids: Sequence[int]) -> dict[str, Any]:
        """Return the JSON of a request for one row."""
        ...

    def values(self, answer: Any, ids: Sequence[int]) -> Any:
        """Return what the engine's reader reads. Raises WrongReply if the answer is of another form, or of other ids.

        With the plugin, it is the numbers after each token of the row; else its hidden states.
        """
        ...


class VllmApi:
    """`/v1/completions`, with token ids as the prompt."""

    path: ClassVar[str] = "/v1/completions"

    def __init__(self, model: str, top_k: int) -> None:
        """`model` is the name that the server serves the teacher under."""
        self.model = model
        # the largest number of each position is the first carrier; the likeliest tokens come after all carriers
        self.of_prompt = top_k + CARRIERS if top_k else 1
        self.at_end = max(2, self.of_prompt)

    def body(self, ids: Sequence[int]) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": list(ids),
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": self.of_prompt,
            "logprobs": self.at_end,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }

    def values(self, answer: Any, ids: Sequence[int]) -> list[Values]:
        with _reading("vLLM's /v1/completions"):
            (choice,) = answer["choices"]
            _check_echo(choice.get("prompt_token_ids"), ids)
            prompt, (last,) = choice["prompt_logprobs"], choice["logprobs"]["top_logprobs"]
            after: list[Values] = [
                {int(id_): number["logprob"] for id_, number in position.items()} for position in prompt[1:]
            ]
            after.append({int(token.removeprefix(_TOKEN)): value for token, value in last.items()})
        return after


class SglangApi:
    """`/generate`, with token ids as the prompt."""

    path: ClassVar[str] = "/generate"

    def __init__(self, carriers: Sequence[int], top_k: int) -> None:
        self.carriers, self.top_k = list(carriers), top_k

    def body(self, ids: Sequence[int]) -> dict[str, Any]:
        top = {"top_logprobs_num": self.top_k + CARRIERS} if self.top_k else {}
        return {
            "input_ids": list(ids),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "token_ids_logprob": self.carriers,
            **top,
        }

    def values(self, answer: Any, ids: Sequence[int]) -> list[Values]:
        with _reading("SGLang's /generate"):
            meta = answer["meta_info"]
            tokens = meta["input_token_logprobs"]
            _check_echo([id_ for _, id_, *_ in tokens], ids)
            names = ["token_ids_logprobs", *(["top_logprobs"] if self.top_k else [])]
            # a position's lists are those of its own token: of the first one there are none
            after: list[dict[int, float]] = [{id_: value} for value, id_, *_ in tokens[1:]] + [{}]
            for name in names:
                lists = [*meta[f"input_{name}"][1:], meta[f"output_{name}"][0]]
                for values, numbers in zip(after, lists, strict=True):
                    values |= {id_: value for value, id_, *_ in numbers}
        return list[Values](after)


class PoolingApi:
    """vLLM's `/pooling`, with token ids as the input: the last hidden state of each token, after the last norm."""

    path: ClassVar[str] = "/pooling"

    def __init__(self, model: str) -> None:
        self.model = model

    def body(self, ids: Sequence[int]) -> dict[str, Any]:
        # in float32 whatever the model's dtype is: what a dtype can't hold then shows in the numbers
        return {
            "model": self.model,
            "input": list(ids),
            "task": "token_embed",
            "use_activation": False,
            "add_special_tokens": False,
            "encoding_format": "base64",
            "embed_dtype": "float32",
            "endianness": "little",
        }

    def values(self, answer: Any, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """[T, H] the hidden states. The ids are not repeated, so only their number is compared."""
        with _reading("vLLM's /pooling"):
            (row,), tokens = answer["data"], int(answer["usage"]["prompt_tokens"])
            numbers = np.frombuffer(base64.b64decode(row["data"], validate=True), "<f4")
        if tokens != len(ids) or not len(numbers) or len(numbers) % len(ids):
            raise WrongReply(
                f"has {len(numbers):,} numbers for {tokens} tokens, and was asked for {len(ids)} tokens: it cut or "
                "padded the text"
            )
        return numbers.astype(np.float32, copy=False).reshape(len(ids), -1)


@contextmanager
def _reading(api: str) -> Iterator[None]:
    """Turn an answer of another form into a WrongReply."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise WrongReply(
            f"is not of the form of {api}: {type(error).__name__}: {error}: docs/how-to/served-teachers.md names the "
            "versions that are known to work"
        ) from error


def _check_echo(echoed: Any, ids: Sequence[int]) -> None:
    if echoed is None:
        raise WrongReply("does not repeat the ids of the prompt: its version does not know return_token_ids; update it")
    if list(echoed) != list(ids):
        raise WrongReply("repeats other ids than those that it was asked to score: it changed the prompt")


def error_text(answer: Any) -> str:
    """Return what an answer of a server that refuses says, shortened."""
    if isinstance(answer, Mapping):
        error = answer.get("error", answer)
        message = error.get("message", error) if isinstance(error, Mapping) else error
        return str(message)[:500]
    return str(answer)[:500]
