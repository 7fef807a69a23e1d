"""How the teacher scores."""

from collections.abc import Mapping
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from alm_pipeline.config.frozen import Frozen
from storage.printed.secrets import naming_path

Dtype = Literal["float32", "bfloat16", "float16"]
Engine = Literal["transformers", "vllm", "sglang", "http"]
DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""of a weight of each dtype"""


class ServedConfig(Frozen):
    """A teacher behind a server, or in vLLM: used by every `score.engine` but `transformers`."""

    urls: tuple[str, ...] = Field(
        (),
        description="The servers' addresses, such as http://10.0.0.5:8000; all serve the same teacher, and share the "
        "work. Default: with `http`, the run starts a vLLM server on this machine and ends it afterward.",
    )
    model: str | None = Field(
        None, min_length=1, description="The name that the servers serve the teacher under. Default: the only one."
    )
    hidden_states: bool = Field(
        False,
        description="The engine returns each token's last hidden state, and this project's own head computes the "
        "scores from it: for vLLM without the plugin alm-scores, as a server in its pooling mode, or in this process. "
        "A state is large (4 bytes per number), and this machine loads the teacher's head.",
    )
    head_device: str | None = Field(
        None,
        min_length=1,
        description="With `hidden_states`: the device for the teacher's head, such as cpu or cuda:1. Default: the GPU "
        "if there is one.",
    )
    in_flight: int = Field(32, ge=1, le=4096, description="The maximum number of requests at a time, per server.")
    timeout: float = Field(600.0, gt=0, description="The seconds that a server may take for one request.")
    wait: float = Field(
        600.0,
        ge=0,
        description="The seconds to go on trying while a server does not answer, or answers that it can't now: it may "
        "be starting again. Nothing is lost meanwhile.",
    )
    probe: Literal["auto", "reference", "windows"] = Field(
        "auto",
        description="What the first answers are compared with: with `reference`, this project's own scores of the same "
        "teacher, on this machine's processor; with `windows`, the server's own answers to the same tokens in other "
        "batches and in shorter windows. `auto`: `reference` if the weights are in a folder of this machine, not "
        "quantized, and take less than half of its free memory.",
    )
    tolerance: float | None = Field(
        None,
        gt=0,
        description="The mean difference in nats above which the probe refuses the server; a single number may differ "
        "by twenty times that. Default: 0.001 in float32, 0.05 in bfloat16 and float16.",
    )
    quantization: str | None = Field(
        None,
        min_length=1,
        description="How the server quantizes the teacher while it loads it, in vLLM's words (fp8, bitsandbytes, …). "
        "It decides the scores. Default: not at all, besides what the teacher's own files say.",
    )
    tensor_parallel: int = Field(
        1, ge=1, description="With a server that the run starts, and with `vllm`: GPUs that share each layer."
    )
    pipeline_parallel: int = Field(
        1, ge=1, description="With a server that the run starts, and with `vllm`: groups of GPUs that share the layers."
    )
    batched_tokens: int | None = Field(
        None,
        ge=1,
        description="With a server that the run starts, and with `vllm`: the maximum number of tokens per step "
        "(max_num_batched_tokens). The logits of one text in a step are computed at once, in float32: lower it if "
        "memory runs out. Default: vLLM's own.",
    )
    command: tuple[str, ...] = Field(
        ("vllm", "serve"),
        min_length=1,
        description="The command of the server that the run starts, such as a path in another environment.",
    )
    arguments: tuple[str, ...] = Field(
        (),
        description="Further arguments of `vllm serve`, for the server that the run starts and for the engine `vllm`, "
        "such as --gpu-memory-utilization=0.8.",
    )
    start_timeout: float = Field(1800.0, gt=0, description="The seconds that a server that the run starts may need.")

    @field_validator("urls")
    @classmethod
    def _are_addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise ValueError(f"{naming_path(url)} is not the address of a server, such as http://10.0.0.5:8000")
            if parts.username or parts.password:
                raise ValueError(
                    f"{naming_path(url)} contains a password: servers get the key in the environment variable "
                    "ALM_SERVER_KEY"
                )
        if len({url.rstrip("/") for url in urls}) < len(urls):
            raise ValueError("an address is named twice")
        return tuple(url.rstrip("/") for url in urls)


class ScoreConfig(Frozen):
    """How the teacher scores."""

    engine: Engine = Field(
        "transformers",
        description="What computes the scores: `transformers` in this process; `vllm` in this process's environment; "
        "`http`, a vLLM server with the plugin alm-scores, or without it by `served.hidden_states`; `sglang`, an "
        "SGLang server with the plugin. It changes the scores only by rounding, so it is not part of their name, and a "
        "probe holds every engine to that.",
    )
    served: ServedConfig = Field(
        ServedConfig(), description="The teacher behind a server, or in vLLM: for engines besides `transformers`."
    )

    dtype: Dtype = Field("bfloat16", description="The dtype of the teacher's weights and of its forward pass.")
    mantissa_bits: int = Field(
        10,
        ge=4,
        le=23,
        description="The mantissa bits that float32 scores are rounded to, so that they compress. 10 bits (as in "
        "float16) take 3.9 bytes per token and change the ALM loss by less than a millionth, a quarter of the rounding "
        "of a teacher in bfloat16; 15 bits take 5.0 bytes, for a teacher in float32; 7 bits (as in bfloat16) take 2.9 "
        "bytes and change the loss by up to 2e-5; 23 bits round nothing and take 6.6 bytes.",
    )
    window: int | None = Field(
        None,
        ge=4,
        description="The maximum number of tokens that the teacher sees at once. Longer examples are scored in "
        "overlapping windows. Default, and upper limit: the teacher's context length.",
    )
    context: int | None = Field(
        None,
        ge=1,
        description="With several windows: the minimum number of tokens of the example before each scored token within "
        "its window (fewer only at the example's beginning). At most `window` - 2. Default: half the window.",
    )
    top_k: int = Field(
        0,
        ge=0,
        le=64,
        description="The number of likeliest next tokens, with their log-probabilities, to store for each token "
        "besides the scores. Default: none.",
    )
    batch_tokens: int | None = Field(
        None,
        gt=0,
        description="Tokens per forward pass, including padding. Halved automatically when memory runs out. Default: "
        "4096 on a processor; on a GPU, 4096 doubled as long as its memory allows, up to 65536.",
    )
    compile: bool = Field(
        False,
        description="Compile the teacher's layers with torch.compile: takes a minute at the start, and changes scores "
        "only by rounding.",
    )
    devices: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Devices such as `cuda:0`, each with a copy of the teacher; the copies take shards in turn. "
        "Default: every GPU, or the CPU.",
    )
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = Field(
        None,
        description="How accelerate spreads one teacher over all GPUs, memory and disk, for a teacher too large for "
        "one GPU. Default: not spread. Excludes `devices`.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.window and self.context and self.context > self.window - 2:
            raise ValueError(f"context {self.context} leaves no room in a window of {self.window}: at most window - 2")
        if self.devices and self.device_map:
            raise ValueError("devices is for copies of the teacher, device_map for one teacher: set only one of them")
        if self.engine != "transformers" and (self.devices or self.device_map):
            raise ValueError(
                f"devices and device_map are for the engine transformers; {self.engine} places the teacher itself "
                "(served.tensor_parallel, served.pipeline_parallel)"
            )
        if self.engine in ("transformers", "vllm") and self.served.urls:
            raise ValueError(f"served.urls: the engine {self.engine} asks no server: set engine to http or sglang")
        if self.engine == "sglang" and not self.served.urls:
            raise ValueError("served.urls: the engine sglang needs the address of a running server")
        if self.engine == "transformers" and self.served.quantization:
            raise ValueError("served.quantization: the engine transformers loads a teacher as its files say")
        if self.served.hidden_states and self.engine not in ("http", "vllm"):
            raise ValueError(
                f"served.hidden_states: only vLLM returns hidden states, and the engine is {self.engine}: set engine "
                "to http or vllm (SGLang returns them as JSON numbers, some 80 kB per token: use the plugin there)"
            )
        if self.served.head_device and not self.served.hidden_states:
            raise ValueError("served.head_device: without served.hidden_states, the engine computes the head")
        return self

    @property
    def asks_other_machines(self) -> bool:
        """Whether servers that are there already score, so that this machine's GPUs stay free."""
        return bool(self.served.urls) and not self.served.hidden_states

    def identity(self) -> dict[str, Any]:
        """Return what decides the scores.

        Where and how they are computed, by which engine, and how many tokens at once, changes them only by rounding
        (sums in another order): if runs differ in this, the first to publish a shard wins. A quantization that the
        engine applies while it loads the teacher changes more than that.
        """
        undecisive = {"batch_tokens", "compile", "devices", "device_map", "engine", "served"}
        content = self.model_dump(mode="json", exclude=undecisive if self.top_k else {*undecisive, "top_k"})
        return content | ({"quantization": self.served.quantization} if self.served.quantization else {})
