"""Engines that score rows of tokens outside of transformers: vLLM and SGLang servers, and vLLM in this process."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from alm_pipeline.scoring.served.client import Client
from alm_pipeline.scoring.served.replies import RowScores, Served, WrongReply
from alm_pipeline.scoring.served.vocabulary import CARRIERS, ServedVocabulary
from alm_pipeline.scoring.served.wire import Api, PoolingApi, SglangApi, VllmApi
from storage.errors import UserError

Ids = npt.NDArray[np.int32]
_HIDDEN_STATES = " by hidden states"
"""in records, after the engine's name and version"""
_PREFIX_CACHING = re.compile(r'^vllm:cache_config_info\{[^}]*enable_prefix_caching="True"', re.MULTILINE)


class EngineFacts(NamedTuple):
    """What an engine says of itself and of the teacher that it has loaded."""

    engine: str
    """such as `vllm 0.32.0`"""
    model: str
    """where it loaded the teacher from; "" if it does not say"""
    longest: int | None
    """the number of tokens of the longest row; None: no limit"""
    dtype: str
    """unknown if only the replies say"""
    quantization: str


class ScoredRow(NamedTuple):
    """A row's scores, and who computed them."""

    number: int
    source: str
    """the server's address, or the engine"""
    scores: RowScores
    served: Served


class RowReader(Protocol):
    """Reads what an engine answers for a row."""

    @property
    def top_k(self) -> int: ...

    def read(self, ids: Sequence[int], values: Any, /) -> tuple[RowScores, Served]:
        """Return the row's scores, and what is served. Raises WrongReply if the values can't be true."""
        ...


class RowEngine(Protocol):
    """Scores rows of tokens."""

    reader: RowReader

    @property
    def facts(self) -> Sequence[EngineFacts]:
        """What each server says; all serve the same teacher."""
        ...

    @property
    def urls(self) -> Sequence[str]:
        """The servers' addresses; empty if it is in this process."""
        ...

    def rows(
        self,
        rows: Sequence[Ids],
        name: Callable[[int], str],
        while_waiting: Callable[[], None],
        url: str | None = None,
    ) -> Iterator[ScoredRow]:
        """Yield the scores of each row as they come; `name` names a row by its number in errors.

        With `url`, only this server is asked. `while_waiting` is called now and then; it may raise. Raises UserError if
        an answer can't be true, or none comes.
        """
        ...


@dataclass
class HttpEngine:
    """Servers that answer over HTTP."""

    client: Client
    api: Api
    reader: RowReader
    facts: Sequence[EngineFacts]

    @classmethod
    def vllm(cls, client: Client, reader: RowReader) -> "HttpEngine":
        """Servers of vLLM; whether with the plugin or without it, the client's configuration says.

        Raises UserError if a server is not vLLM's, serves several models or an adapter, or has prefix caching on.
        """
        names, facts = zip(*(_vllm_facts(client, url) for url in client.urls), strict=True)
        if len(set(names)) > 1:
            raise UserError(
                f"score.served.urls: the servers serve the teacher under several names ({', '.join(sorted(set(names)))}"
                "): start them with the same --served-model-name"
            )
        api = PoolingApi(names[0]) if client.config.hidden_states else VllmApi(names[0], reader.top_k)
        return cls(client, api, reader, facts)

    @classmethod
    def sglang(cls, client: Client, reader: RowReader, vocabulary: ServedVocabulary) -> "HttpEngine":
        """Raises UserError if a server is not SGLang's."""
        facts = [_sglang_facts(client, url) for url in client.urls]
        return cls(client, SglangApi(vocabulary.carriers, reader.top_k), reader, facts)

    @property
    def urls(self) -> Sequence[str]:
        return self.client.urls

    def rows(
        self,
        rows: Sequence[Ids],
        name: Callable[[int], str],
        while_waiting: Callable[[], None],
        url: str | None = None,
    ) -> Iterator[ScoredRow]:
        def body(number: int) -> dict[str, Any]:
            return self.api.body(rows[number].tolist())

        for number, answer in self.client.answers(self.api.path, len(rows), body, while_waiting, url):
            ids = rows[number].tolist()
            try:
                scores, served = self.reader.read(ids, self.api.values(answer.content, ids))
            except WrongReply as error:
                raise UserError(f"{answer.url}: its answer for {name(number)} {error}") from error
            yield ScoredRow(number, answer.url, scores, served)


def _vllm_facts(client: Client, url: str) -> tuple[str, EngineFacts]:
    """Return the name that a server serves the teacher under, and what it says."""
    models = _json(client, url, "/v1/models", "vLLM")
    served = {model["id"]: model for model in models.get("data", [])} if isinstance(models, dict) else {}
    name = client.config.model or next(iter(served), "")
    if name not in served or (len(served) > 1 and not client.config.model):
        raise UserError(
            f"{url}: serves {', '.join(served) or 'no model'}: set score.served.model to the name of the teacher there"
        )
    model = served[name]
    if model.get("parent"):
        raise UserError(
            f"{url}: serves {name} as an adapter of {model['parent']}, and the teacher is a whole model: set "
            "score.served.model to the name of the teacher itself, or merge the adapter into its model "
            "(merge_and_unload), name that as the teacher, and serve it"
        )
    if _PREFIX_CACHING.search(client.get(url, "/metrics").text):
        raise UserError(
            f"{url}: caches prefixes, so the log-probabilities of a prompt may lack what was cached: start the server "
            "with --no-enable-prefix-caching"
        )
    version = _json(client, url, "/version", "vLLM").get("version", "of an unknown version")
    longest, engine = model.get("max_model_len"), f"vllm {version}"
    if client.config.hidden_states:
        engine += _HIDDEN_STATES
    elif longest:
        longest -= 1  # one token is generated, because the boundary after a row's last token comes with it
    return name, EngineFacts(engine, str(model.get("root") or ""), longest, "unknown", "unknown")


def _sglang_facts(client: Client, url: str) -> EngineFacts:
    info = None
    for path in ("/server_info", "/get_server_info"):
        if info is None and (response := client.get(url, path)).status_code == 200:
            info = response.json()
    if not isinstance(info, dict) or "model_path" not in info:
        raise UserError(
            f"{url}: is not an SGLang server: neither /server_info nor /get_server_info describes its model"
        )
    longest = info.get("max_req_input_len") or info.get("context_length")
    dtype = str(info.get("dtype") or "unknown").removeprefix("torch.")
    return EngineFacts(
        f"sglang {info.get('version', 'of an unknown version')}",
        str(info["model_path"]),
        longest and longest - 1,
        "unknown" if dtype == "auto" else dtype,
        str(info.get("quantization") or "none"),
    )


def _json(client: Client, url: str, path: str, kind: str) -> Any:
    response = client.get(url, path)
    if response.status_code in (401, 403):
        raise UserError(f"{url}: refuses access: set the environment variable ALM_SERVER_KEY to the server's API key")
    try:
        if response.status_code == 200:
            return response.json()
    except ValueError:
        pass
    raise UserError(f"{url}: is not a {kind} server: {path} answers {response.status_code}: correct score.served.urls")


@dataclass
class VllmEngine:
    """vLLM in this process's environment, with its own processes for the GPUs."""

    llm: Any
    reader: RowReader
    facts: Sequence[EngineFacts]
    hidden_states: bool
    urls: Sequence[str] = ()

    @classmethod
    def start(
        cls, arguments: Sequence[str], longest: int | None, reader: RowReader, *, hidden_states: bool
    ) -> "VllmEngine":
        """Load the teacher with the arguments of `vllm serve`; ALM_SCORES_FILE names the plugin's file, if it is used.

        Raises UserError if vLLM is not installed.
        """
        try:
            from vllm import LLM, EngineArgs, __version__
            from vllm.utils.argparse_utils import FlexibleArgumentParser
        except ImportError as error:
            raise UserError(
                f"score.engine vllm: vLLM is not installed in this environment ({error}): install it together with "
                "plugins/alm-scores, or set score.engine to http and let a server in another environment score"
            ) from error
        parsed = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(["--model", *arguments])
        llm = LLM.from_engine_args(EngineArgs.from_cli_args(parsed))
        engine = f"vllm {__version__}{_HIDDEN_STATES if hidden_states else ''}"
        return cls(llm, reader, [EngineFacts(engine, arguments[0], longest, "unknown", "unknown")], hidden_states)

    def rows(
        self,
        rows: Sequence[Ids],
        name: Callable[[int], str],
        while_waiting: Callable[[], None],
        url: str | None = None,
    ) -> Iterator[ScoredRow]:
        prompts = [{"prompt_token_ids": row.tolist()} for row in rows]
        answers = self._hidden_states(prompts) if self.hidden_states else self._logprobs(prompts)
        for number, values in enumerate(answers):
            try:
                scores, served = self.reader.read(rows[number].tolist(), values)
            except WrongReply as error:
                raise UserError(f"score.engine vllm: its answer for {name(number)} {error}") from error
            yield ScoredRow(number, self.facts[0].engine, scores, served)

    def _logprobs(self, prompts: Sequence[Any]) -> Iterator[Any]:
        from vllm import SamplingParams

        of_prompt = self.reader.top_k + CARRIERS if self.reader.top_k else 1
        sampling = SamplingParams(
            max_tokens=1, temperature=0, prompt_logprobs=of_prompt, logprobs=max(2, of_prompt), detokenize=False
        )
        for output in self.llm.generate(prompts, sampling, use_tqdm=False):
            positions = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
            yield [{id_: number.logprob for id_, number in position.items()} for position in positions]

    def _hidden_states(self, prompts: Sequence[Any]) -> Iterator[Any]:
        from vllm import PoolingParams

        pooling = PoolingParams(use_activation=False)
        for output in self.llm.encode(prompts, pooling, pooling_task="token_embed", use_tqdm=False):
            yield output.outputs.data.float().numpy()
