"""A server with the APIs of vLLM and SGLang that score prompts, over a tiny transformers model and the plugin's code.

The forms of its answers are those of vLLM 0.32 (recorded from `/v1/completions` and `/pooling`) and of SGLang's source.
It has both of vLLM's APIs, though a real server has one of them. It can answer
wrongly on purpose: a fault is a function that changes an answer, or writes something else to the connection.
"""

import base64
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import torch
from alm_scores.encoding import Encoder, coarse_code, code
from alm_scores.file import read_file

from alm_pipeline.models.output_head import hidden_states
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.scoring.served.vocabulary import ServedVocabulary

Json = dict[str, Any]
Fault = Callable[["Handler", Json], Json | None]
"""changes an answer, or returns None after it has written one itself"""
NAME = "teacher"


def largest(numbers_V: torch.Tensor, count: int) -> dict[int, float]:
    top = numbers_V.topk(count)
    return dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))


class SmallServer:
    """A model behind HTTP. `faults` maps the number of a scoring request, from 0, to what goes wrong with it."""

    def __init__(self, teacher: ModelReference, folder: Path, vocabulary: ServedVocabulary | None = None) -> None:
        file = folder / "alm-scores.json"
        (vocabulary or ServedVocabulary.of(teacher)).write(file)
        self.vocabulary, self.model = read_file(file), teacher.load("float32", device="cpu").eval()
        self.folder, self.encode = str(teacher.folder), Encoder(self.vocabulary)
        self.faults: dict[int, Fault] = {}
        self.always: Fault | None = None
        self.longest, self.key, self.has_plugin = 513, "", True
        self.dtype, self.quantization, self.prefix_caching = "float32", "none", False
        self.parent: str | None = None
        """the model that what is served is an adapter of"""
        self.paths: tuple[str, ...] = ("/v1/completions", "/pooling", "/generate")
        self.requests = count()
        self.asked: list[list[int]] = []
        self.most_at_once, self.at_once, self.lock = 0, 0, threading.Lock()

    @torch.inference_mode()
    def numbers(self, ids: Sequence[int], normalized: bool) -> torch.Tensor:
        """[T, V] what the plugin puts into the place of logits."""
        logits_TV = self.model(input_ids=torch.tensor([ids])).logits[0]
        if not self.has_plugin:
            return logits_TV.log_softmax(-1)
        number = coarse_code(self.vocabulary) if normalized else code(self.vocabulary, self.dtype, self.quantization)
        encoded_TV = self.encode(logits_TV, number)
        return encoded_TV.log_softmax(-1) if normalized else encoded_TV

    def completions(self, body: Json) -> Json:
        ids, numbers_TV = body["prompt"], self.numbers(body["prompt"], normalized=False)
        prompt: list[Json | None] = [None]
        for at, id_ in enumerate(ids[1:]):
            entries = {id_: float(numbers_TV[at, id_])} | largest(numbers_TV[at], body["prompt_logprobs"])
            prompt.append(
                {str(key): {"logprob": value, "rank": 1, "decoded_token": None} for key, value in entries.items()}
            )
        top_last = {f"token_id:{id_}": value for id_, value in largest(numbers_TV[-1], body["logprobs"]).items()}
        logprobs = {"text_offset": [0], "tokens": [next(iter(top_last))], "top_logprobs": [top_last]}
        choice = {"index": 0, "text": "", "logprobs": logprobs, "prompt_logprobs": prompt, "prompt_token_ids": ids}
        return {"id": "cmpl-1", "object": "text_completion", "model": NAME, "choices": [choice]}

    @torch.inference_mode()
    def pooling(self, body: Json) -> Json:
        states_TH = hidden_states(self.model, torch.tensor([body["input"]]))[0]
        states_TH = states_TH.to(getattr(torch, self.dtype)).float()
        if body["use_activation"]:
            states_TH = torch.nn.functional.normalize(states_TH, dim=-1)
        assert (body["encoding_format"], body["embed_dtype"], body["endianness"]) == ("base64", "float32", "little")
        data = base64.b64encode(states_TH.numpy().tobytes()).decode()
        count = len(body["input"])
        return {
            "id": "pool-1",
            "object": "list",
            "model": NAME,
            "data": [{"index": 0, "object": "pooling", "data": data}],
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }

    def generate(self, body: Json) -> Json:
        ids, numbers_TV = body["input_ids"], self.numbers(body["input_ids"], normalized=True)

        def listed(at: int, keys: Sequence[int]) -> list[list[Any]]:
            return [[float(numbers_TV[at, key]), key, None] for key in keys]

        wanted, last = body["token_ids_logprob"], len(ids) - 1
        meta: Json = {
            "input_token_logprobs": [[None, ids[0], None], *(listed(at, [ids[at + 1]])[0] for at in range(last))],
            "input_token_ids_logprobs": [None, *(listed(at, wanted) for at in range(last))],
            "output_token_ids_logprobs": [listed(last, wanted)],
        }
        if number := body.get("top_logprobs_num"):
            tops = numbers_TV.topk(number).indices.tolist()
            meta["input_top_logprobs"] = [None, *(listed(at, tops[at]) for at in range(last))]
            meta["output_top_logprobs"] = [listed(last, tops[last])]
        return {"text": "", "meta_info": meta}

    def page(self, path: str) -> Json | str | None:
        """Return what a GET answers."""
        model = {"id": NAME, "object": "model", "root": self.folder, "max_model_len": self.longest}
        model["parent"] = self.parent
        info = {"model_path": self.folder, "version": "0.5.0", "dtype": self.dtype, "quantization": None}
        caching = (
            f'vllm:cache_config_info{{block_size="128",enable_prefix_caching="{self.prefix_caching}",engine="0"}} 1'
        )
        pages: dict[str, Json | str] = {
            "/v1/models": {"object": "list", "data": [model]},
            "/health": "",
            "/version": {"version": "0.32.0"},
            "/metrics": f"# TYPE vllm:cache_config_info gauge\n{caching}\n",
            "/get_server_info": {**info, "max_req_input_len": self.longest},
        }
        return pages.get(path)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: SmallServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        page = self.served.page(self.path)
        content = page.encode() if isinstance(page, str) else json.dumps(page).encode()
        self.send(200 if page is not None else 404, content)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        served = self.served
        if served.key and self.headers.get("Authorization") != f"Bearer {served.key}":
            self.send_json(401, {"error": {"message": "Unauthorized"}})
            return
        with served.lock:
            served.at_once += 1
            served.most_at_once = max(served.most_at_once, served.at_once)
            number = next(served.requests)
            served.asked.append(body.get("prompt") or body.get("input_ids") or body["input"])
        try:
            if self.path not in served.paths:
                self.send_json(404, {"detail": "Not Found"})
                return
            apis = {"/v1/completions": served.completions, "/pooling": served.pooling, "/generate": served.generate}
            answer = apis[self.path](body)
            fault = served.faults.get(number) or served.always
            changed = fault(self, answer) if fault else answer
            if changed is not None:
                self.send_json(200, changed)
        finally:
            with served.lock:
                served.at_once -= 1

    def send_json(self, status: int, content: Json) -> None:
        self.send(status, json.dumps(content).encode())

    def send(self, status: int, content: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)


def refuses(status: int) -> Fault:
    def fault(handler: Handler, _: Json) -> None:
        handler.send_json(status, {"error": {"message": "something went wrong", "code": status}})

    return fault


def dies(handler: Handler, answer: Json) -> None:
    """Close the connection in the middle of the answer."""
    content = json.dumps(answer).encode()
    handler.send(200, content[: len(content) // 2], length=len(content))
    handler.close_connection = True


def truncates(handler: Handler, answer: Json) -> None:
    """Send the half of an answer as if it were all of it."""
    content = json.dumps(answer).encode()
    handler.send(200, content[: len(content) // 2])


def is_slow(_: Handler, answer: Json) -> Json:
    time.sleep(0.5)
    return answer


def puts(value: float, at: int = 2) -> Fault:
    """Return a fault that replaces the log-probability of the token `at`."""

    def fault(_: Handler, answer: Json) -> Json:
        (choice,) = answer["choices"]
        id_ = str(choice["prompt_token_ids"][at])
        choice["prompt_logprobs"][at][id_]["logprob"] = value
        return answer

    return fault


def puts_boundary(value: float, carrier: int, at: int = 2) -> Fault:
    """Return a fault that replaces log P(boundary) before the token `at`."""

    def fault(_: Handler, answer: Json) -> Json:
        answer["choices"][0]["prompt_logprobs"][at][str(carrier)]["logprob"] = 1 - value
        return answer

    return fault


def changes_ids(_: Handler, answer: Json) -> Json:
    answer["choices"][0]["prompt_token_ids"][1] += 1
    return answer


def forgets_a_token(_: Handler, answer: Json) -> Json:
    del answer["choices"][0]["prompt_logprobs"][-1]
    return answer


NAN, INFINITE = math.nan, -math.inf


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that are gone."""


@contextmanager
def running(served: SmallServer, port: int = 0) -> Iterator[str]:
    """Yield the address that it answers at; port 0 is a free one."""
    handler = type("BoundHandler", (Handler,), {"served": served})
    with _Server(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
