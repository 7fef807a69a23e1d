"""Model families: the chat template that each publishes, its control tokens, and how it takes calls and reasoning.

The forms of calls and the key of reasoning are written down here from reading the templates. The tests compare with
them what the pipeline finds out by itself.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import count
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from tests import tiny
from tests.published_templates import Package, published_template
from tests.real_tokenizers import tokenizer_folder

Calls = Literal["row", "mapping", "text"]
"""The form of a call's arguments that a template takes: the row's own, whichever that is, or one of the two."""

IM = ("<|im_start|>", "<|im_end|>")
LLAMA3 = ("<|begin_of_text|>", "<|eot_id|>")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
COHERE = ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>")
MISTRAL = ("<s>", "</s>")
GRANITE = ("<|end_of_text|>", "<|end_of_text|>")
PHI = ("<|endoftext|>", "<|endoftext|>")
CHATML = ("<|endoftext|>", "<|im_end|>")
GEMMA = ("<bos>", "<eos>")


@dataclass(frozen=True)
class Family:
    """A model family's template, and the tokens and forms that it needs."""

    package: Package | Literal["own", "real"]
    """the package that carries the published template; `own` for one in its manner, in `tests/chat_templates`; `real`
    for that of a tokenizer in `tests.real_tokenizers`"""
    template: str
    """its name there"""
    edges: tuple[str, str] = MISTRAL
    """the tokens that begin and end a text"""
    calls: Calls = "mapping"
    reasoning: str | None = None
    """the key of a message that it reads the reasoning from; None if it reads none"""
    needs_ids: bool = False
    """whether it refuses calls and results without ids"""
    parts: bool = False
    """whether it takes contents only as lists of parts"""
    arguments: tuple[tuple[str, Any], ...] = ()
    """what it needs beside the messages, as statements before its source"""
    special: tuple[str, ...] = ()
    """control tokens that its template's source does not spell as a whole, or not like one"""

    @cached_property
    def source(self) -> str:
        """The template's Jinja source."""
        values = (f"{{%- set {name} = {json.dumps(value)} %}}" for name, value in self.arguments)
        return "".join(values) + self._published

    @property
    def _published(self) -> str:
        match self.package:
            case "own":
                return (
                    (Path(__file__).parent / "chat_templates" / f"{self.template}.jinja").read_text().removesuffix("\n")
                )
            case "real":
                config = json.loads((tokenizer_folder(self.template) / "tokenizer_config.json").read_text())
                template: str = config["chat_template"]
                return template
            case _:
                return published_template(self.package, self.template)


QWEN = "reasoning_content"

FAMILIES: dict[str, Family] = {
    "qwen2": Family("ollama", "qwen2_0.5b", CHATML),
    "qwen2_5": Family("trl", "qwen2_5", CHATML),
    "qwen3": Family("trl", "qwen3", CHATML, calls="row", reasoning=QWEN),
    "qwen3_2507": Family("trl", "qwen3_instruct_2507", CHATML, calls="row"),
    "qwen3_next": Family("ollama", "qwen3-next_80b", CHATML, calls="row", reasoning=QWEN),
    "qwen3_coder": Family("ollama", "qwen3-coder_30b", CHATML),
    "qwen3_5": Family("trl", "qwen3_5_think", CHATML, reasoning=QWEN),
    "qwen3_6": Family("trl", "qwen3_6", CHATML, reasoning=QWEN),
    "qwen3_vl": Family("trl", "qwen3_vl", CHATML, calls="row"),
    "qwq": Family("ollama", "qwq_32b", CHATML),
    "qwq_3": Family("ollama", "qwq_32b.3", CHATML),
    "llama2": Family("ollama", "llama2_7b"),
    "llama3": Family("trl", "llama3", LLAMA3),
    "llama3_1": Family("trl", "llama3_1", LLAMA3),
    "llama3_2": Family("trl", "llama3_2", LLAMA3),
    "llama4": Family("ollama", "llama4_latest", ("<|begin_of_text|>", "<|eot|>")),
    "gemma2": Family("trl", "gemma", GEMMA, special=("<start_of_turn>", "<end_of_turn>")),
    "gemma3": Family("trl", "gemma3", GEMMA, special=("<start_of_turn>", "<end_of_turn>", "<start_of_image>")),
    "gemma4": Family(
        "trl",
        "gemma4_v5",
        GEMMA,
        reasoning="reasoning",
        special=(
            "<|turn>",
            "<turn|>",
            "<|tool>",
            "<tool|>",
            "<|tool_call>",
            "<tool_call|>",
            "<|tool_response>",
            "<tool_response|>",
            "<|channel>",
            "<channel|>",
            '<|"|>',
            "<|think|>",
        ),
    ),
    "mistral_v1": Family("ollama", "mistral_7b-instruct-fp16"),
    "mixtral_8x22b": Family("ollama", "mixtral_8x22b"),
    "mistral_v3": Family("own", "mistral_v3", needs_ids=True),
    "mistral_nemo": Family("real", "mistral_nemo", needs_ids=True),
    "mistral_small_3": Family("ollama", "mistral-small_24b"),
    "mistral_small_3_2": Family("own", "mistral_small_3_2", calls="row"),
    "magistral": Family("own", "magistral", calls="row", reasoning="reasoning_content"),
    "devstral": Family("ollama", "devstral_latest"),
    "deepseek_v2_5": Family("ollama", "deepseek-v2.5_236b", DEEPSEEK, calls="text"),
    "deepseek_v3": Family("trl", "deepseekv3", DEEPSEEK, calls="text"),
    "deepseek_v3_1": Family("ollama", "deepseek-v3.1_latest", DEEPSEEK, calls="text"),
    "deepseek_r1": Family("ollama", "deepseek-r1_latest", DEEPSEEK, calls="text"),
    "r1_distill": Family("trl", "deepseek_r1_distill", DEEPSEEK, calls="text"),
    "r1_qwen3": Family("ollama", "deepseek-r1_8b", DEEPSEEK, calls="text"),
    "gpt_oss": Family("trl", "gptoss", ("<|startoftext|>", "<|return|>"), reasoning="thinking"),
    "smollm2": Family("ollama", "smollm2_135m", IM),
    "smollm3": Family("own", "smollm3", CHATML),
    "smolvlm": Family("trl", "smolvlm", IM, parts=True, special=("<end_of_utterance>", "<image>")),
    "phi3": Family("trl", "phi3", PHI),
    "phi3_5": Family("trl", "phi3_5", PHI),
    "phi4": Family("ollama", "phi4_14b", PHI),
    "phi4_mini": Family("ollama", "phi4-mini_3.8b", PHI),
    "phi4_reasoning": Family("ollama", "phi4-reasoning_14b", PHI),
    "glm4": Family("ollama", "glm4_9b", PHI, special=("[gMASK]", "<sop>", "<|user|>", "<|observation|>")),
    "glm4_5": Family("trl", "glm4moe", PHI, reasoning="reasoning_content", special=("[gMASK]", "<sop>")),
    "kimi_k2": Family("own", "kimi_k2", ("[BOS]", "<|im_end|>"), calls="row", needs_ids=True),
    "granite3_1": Family("ollama", "granite3.1-moe_1b", GRANITE),
    "granite3_3": Family("ollama", "granite3.3_2b", GRANITE),
    "granite4": Family("ollama", "granite4_latest", GRANITE, calls="row"),
    "command_r": Family("ollama", "command-r_35b", COHERE),
    "command_r_tools": Family("own", "command_r_tools", COHERE),
    "command_r7b": Family("ollama", "command-r7b_7b", COHERE),
    "command_r7b_tools": Family("own", "command_r7b_tools", COHERE, reasoning="tool_plan"),
    "command_a": Family("ollama", "command-a_111b", COHERE),
    "cohere2": Family("trl", "cohere2", COHERE),
    "nemotron_70b": Family("ollama", "nemotron_70b", LLAMA3),
    "nemotron_mini": Family(
        "ollama", "nemotron-mini_4b", special=("<extra_id_0>", "<extra_id_1>", "<tool>", "</tool>")
    ),
    "nemotron_3": Family("trl", "nemotron_3_nano", CHATML, reasoning="reasoning_content"),
    "lfm2": Family("trl", "lfm2_v2", ("<|startoftext|>", "<|im_end|>")),
    "lfm2_5": Family("trl", "lfm2_2_5_v2", ("<|startoftext|>", "<|im_end|>"), reasoning="thinking"),
    "apertus": Family("own", "apertus", calls="text", reasoning="thinking"),
    "olmo2": Family("ollama", "olmo2_7b", PHI),
    "hermes3": Family("ollama", "hermes3_70b", ("<|begin_of_text|>", "<|im_end|>")),
    "hermes3_tools": Family("own", "hermes_3_tools", ("<|begin_of_text|>", "<|im_end|>")),
    "minimax_m2": Family(
        "own",
        "minimax_m2",
        ("]~!b[", "[e~["),
        reasoning="reasoning_content",
        special=("]~b]", "<minimax:tool_call>", "</minimax:tool_call>"),
    ),
    "ernie_4_5": Family("own", "ernie_4_5", ("<|begin_of_sentence|>", "<|end_of_sentence|>")),
    "falcon2": Family("ollama", "falcon2_11b", (">>ABSTRACT<<", "<|endoftext|>")),
    "falcon3": Family("own", "falcon_3", PHI),
    "hunyuan": Family("own", "hunyuan_a13b", ("<|startoftext|>", "<|eos|>"), calls="row"),
    "exaone3_5": Family(
        "ollama", "exaone3.5_7.8b", ("[BOS]", "[|endofturn|]"), special=("[|system|]", "[|user|]", "[|assistant|]")
    ),
    "exaone_deep": Family(
        "ollama",
        "exaone-deep_32b",
        ("[BOS]", "[|endofturn|]"),
        special=("[|system|]", "[|user|]", "[|assistant|]", "<thought>", "</thought>"),
    ),
    "exaone4": Family(
        "own",
        "exaone_4",
        ("[BOS]", "[|endofturn|]"),
        calls="row",
        reasoning="reasoning_content",
        special=("[|system|]", "[|user|]", "[|assistant|]", "[|tool|]"),
    ),
    "internlm2": Family("ollama", "internlm2_1.8b"),
    "yi": Family("ollama", "yi_6b", CHATML),
    "tulu3": Family("ollama", "tulu3_70b", PHI),
    "tinyllama": Family("ollama", "tinyllama_1.1b"),
    "openchat": Family("ollama", "openchat_7b", ("<s>", "<|end_of_turn|>")),
    "dbrx": Family("ollama", "dbrx_132b", CHATML),
    "cogito": Family("ollama", "cogito_3b", LLAMA3),
    "firefunction": Family(
        "ollama", "firefunction-v2_70b", LLAMA3, calls="text", arguments=(("functions", "[]"), ("datetime", "now"))
    ),
    "rnj1": Family("ollama", "rnj-1_latest", LLAMA3, calls="row"),
    "marco_o1": Family("ollama", "marco-o1_7b", CHATML),
    "seed_oss": Family(
        "own",
        "seed_oss",
        ("<seed:bos>", "<seed:eos>"),
        reasoning="reasoning_content",
        special=("<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>"),
    ),
    "ling2": Family(
        "own",
        "ling_2",
        ("<|startoftext|>", "<|role_end|>"),
        calls="row",
        reasoning="reasoning_content",
        special=("<role>", "</role>"),
    ),
}

_CONTROLS = re.compile(r"<[|｜][^|｜<>\s{}'\"]+[|｜]>|\[/?[A-Z][A-Z_]+\]")
_UNFLAGGED = re.compile(r"</?(?:tool_call|tool_response|think)>")


def family_tokenizer(name: str, vocabulary: str | None = None) -> PreTrainedTokenizerFast:
    """Return a small tokenizer with the family's template and control tokens. Three vocabularies take turns.

    Tags of calls and thoughts are added tokens that are not flagged as special, as in most of these models.
    """
    family = FAMILIES[name]
    source = family.source
    special = [*family.edges, *_CONTROLS.findall(source), *family.special]
    backend = Tokenizer.from_str(vocabulary or _vocabulary(list(FAMILIES).index(name) % 3))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _unique(special)])
    plain = [token for token in _unique(_UNFLAGGED.findall(source)) if token not in special]
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    bos, eos = family.edges
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=eos, chat_template=source
    )
    tokenizer.name_or_path = name
    return tokenizer


def _unique(tokens: list[str]) -> list[str]:
    return list(dict.fromkeys(tokens))


@cache
def _vocabulary(index: int) -> str:
    """Return a tokenizer without control tokens as JSON: byte-level of two sizes, and one like SentencePiece's."""
    made = [tiny.byte_level_tokenizer, lambda: tiny.byte_level_tokenizer(700), tiny.sentencepiece_tokenizer][index]()
    return without_control_tokens(made)


def without_control_tokens(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return a tokenizer's vocabulary and rules as JSON."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = [token for token in state["added_tokens"] if not token["special"] or token["content"] == "<unk>"]
    return json.dumps({**state, "added_tokens": kept, "post_processor": None})


def messages_for(family: Family, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a conversation in the form that the family's template takes: the oracle of what the pipeline finds out.

    Calls without ids are numbered where the template wants ids, and their results are in the same order.
    """
    numbers = (f"{number:09d}" for number in count(1)), (f"{number:09d}" for number in count(1))
    return [_message_for(family, message, *numbers) for message in messages]


def _message_for(
    family: Family, message: dict[str, Any], call_ids: Iterator[str], result_ids: Iterator[str]
) -> dict[str, Any]:
    message = dict(message)
    if family.reasoning and (
        keys := [key for key in ("reasoning_content", "reasoning", "thinking") if message.get(key)]
    ):
        message[family.reasoning] = message.pop(keys[0])
    if calls := message.get("tool_calls"):
        message["tool_calls"] = [_call_for(family, call, call_ids) for call in calls]
    if family.parts:
        message["content"] = [{"type": "text", "text": message["content"]}]
    if family.needs_ids and message["role"] == "tool" and "tool_call_id" not in message:
        message["tool_call_id"] = next(result_ids)
    return message


def _call_for(family: Family, call: dict[str, Any], ids: Iterator[str]) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    match family.calls:
        case "mapping" if isinstance(arguments, str):
            arguments = json.loads(arguments)
        case "text" if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        case _:
            pass
    id_ = {"id": next(ids)} if family.needs_ids and "id" not in call else {}
    return {**call, **id_, "function": {**call["function"], "arguments": arguments}}
