"""Does a student that is distilled on a teacher's tool conversations learn to call?

python -m benchmarks.tool_calls [--seeds 3] [--students llama3_1 qwen3_coder] [--steps 600] [--root FOLDER]

A tiny teacher is trained on the spot: asked for the weather of a place it calls a tool in 90 % of all cases, in
Qwen 2.5's template, and otherwise says that it does not know. A tiny student with another tokenizer and template
(Llama 3.1's, which writes JSON elsewhere, and Qwen3-Coder's, which writes XML) has learned to talk, but never calls. It
is distilled on conversations that the teacher generates. A generation of the student counts as a right call if it is
what its own template writes for the call of the tool with the place that the prompt asks for, up to the turn's end.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from alm_pipeline.config import (
    AlmConfig,
    CorpusConfig,
    EvaluationConfig,
    FilesSource,
    ObjectiveConfig,
    ScoreConfig,
    StudentConfig,
    TrainConfig,
)
from alm_pipeline.pipeline import Pipeline
from tests import tiny
from tests.families import FAMILIES, family_tokenizer, without_control_tokens

TEACHER = "qwen2_5"
PLACES = ("Bern", "Chur", "Genf", "Thun")
QUESTIONS = ("Weather in {}?", "Is it warm in {}?", "Rain in {}?")
CALL_SHARE = 0.9
UNKNOWN = "No idea."
Message = dict[str, Any]


class Shares(NamedTuple):
    """Shares of generations that are a right call."""

    teacher: float
    before: float
    after: float


def call_of(place: str) -> Message:
    function = {"name": "look", "arguments": {"place": place}}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def question(generator: random.Random) -> tuple[str, Message]:
    place = generator.choice(PLACES)
    return place, {"role": "user", "content": generator.choice(QUESTIONS).format(place)}


def rendered(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], *, prompt: bool = False) -> str:
    return str(
        tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=prompt, strftime_now=lambda _: "26 Jul 2024"
        )
    )


def small_tokenizer(family: str, make: Callable[[int, Sequence[str]], PreTrainedTokenizerFast], size: int) -> Any:
    """Return the family's tokenizer with a vocabulary of what its template writes for this task."""
    asked = [{"role": "user", "content": text.format(place)} for text in QUESTIONS for place in PLACES]
    answers = [*map(call_of, PLACES), {"role": "assistant", "content": UNKNOWN}]
    template = family_tokenizer(family)
    written = [rendered(template, [message, answer]) for message in asked for answer in answers]
    return family_tokenizer(family, without_control_tokens(make(size, [*tiny.TEXTS, *written])))


def small_llama(tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config)


def fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, talks: Sequence[list[Message]], steps: int) -> None:
    """Train by cross-entropy of the answers, 16 conversations per step."""
    encoded = [with_labels(tokenizer, talk) for talk in talks]
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for step in range(steps):
        batch = [encoded[(16 * step + k) % len(encoded)] for k in range(16)]
        ids, labels = (
            pad_sequence(list(column), batch_first=True, padding_value=-100) for column in zip(*batch, strict=True)
        )
        model(input_ids=ids.clamp(min=0), labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def with_labels(tokenizer: PreTrainedTokenizerFast, talk: list[Message]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids of a conversation, and the same with -100 before the answer."""
    ids = torch.tensor(tokenizer(rendered(tokenizer, talk), add_special_tokens=False)["input_ids"])
    prompt = tokenizer(rendered(tokenizer, talk[:-1]), add_special_tokens=False)["input_ids"]
    return ids, torch.cat([torch.full((len(prompt),), -100), ids[len(prompt) :]])


def generated(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, asked: Sequence[Message]) -> list[str]:
    """Return what the model answers to each question, sampled at temperature 1, up to its end of turn."""
    model.eval()
    prompts = [rendered(tokenizer, [message], prompt=True) for message in asked]
    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, add_special_tokens=False, return_tensors="pt", padding=True)
    generate: Any = model.generate  # which transformers types as a tensor
    with torch.inference_mode():
        ids = generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            do_sample=True,
            top_k=0,
            max_new_tokens=64,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    answers = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=False)
    return [answer.split(str(tokenizer.eos_token))[0] for answer in answers]


def right_calls(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int, count: int = 200) -> float:
    """Return the share of generations that are what the template writes for the right call."""
    torch.manual_seed(seed)
    generator = random.Random(seed)
    pairs = [question(generator) for _ in range(count)]
    answers = generated(model, tokenizer, [message for _, message in pairs])
    right = [
        answer == expected(tokenizer, place, message) for (place, message), answer in zip(pairs, answers, strict=True)
    ]
    return sum(right) / count


def expected(tokenizer: PreTrainedTokenizerFast, place: str, asked: Message) -> str:
    prompt = rendered(tokenizer, [asked], prompt=True)
    whole = rendered(tokenizer, [asked, call_of(place)])
    # a template may open a call's turn without the line end of a prompt
    shared = prompt if whole.startswith(prompt) else prompt.rstrip()
    assert whole.startswith(shared)
    return whole[len(shared) :].split(str(tokenizer.eos_token))[0]


def teacher_conversations(count: int, seed: int) -> list[list[Message]]:
    generator = random.Random(seed)
    conversations = []
    for _ in range(count):
        place, asked = question(generator)
        calls = generator.random() < CALL_SHARE
        conversations.append([asked, call_of(place) if calls else {"role": "assistant", "content": UNKNOWN}])
    return conversations


def make_teacher(folder: Path, seed: int, steps: int) -> tuple[str, PreTrainedModel, PreTrainedTokenizerFast]:
    tokenizer = small_tokenizer(TEACHER, tiny.byte_level_tokenizer, 500)
    model = small_llama(tokenizer, seed)
    fit(model, tokenizer, teacher_conversations(4000, seed), steps)
    return tiny.save(folder, model, tokenizer), model, tokenizer


def make_student(
    folder: Path, family: str, seed: int, steps: int
) -> tuple[str, PreTrainedModel, PreTrainedTokenizerFast]:
    """Return a student that answers every question with a sentence."""
    tokenizer = small_tokenizer(family, tiny.byte_level_tokenizer, 360)
    model = small_llama(tokenizer, seed + 100)
    generator = random.Random(seed + 100)
    talks = [[question(generator)[1], {"role": "assistant", "content": UNKNOWN}] for _ in range(400)]
    fit(model, tokenizer, talks, steps)
    return tiny.save(folder, model, tokenizer), model, tokenizer


def conversations_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, count: int, seed: int
) -> list[list[Message]]:
    """Return conversations that the teacher generates: its calls as `tool_calls`, all else as contents."""
    torch.manual_seed(seed)
    generator = random.Random(seed)
    asked = [question(generator)[1] for _ in range(count)]
    return [
        [message, parsed(answer)] for message, answer in zip(asked, generated(model, tokenizer, asked), strict=True)
    ]


def parsed(answer: str) -> Message:
    """Return Qwen 2.5's answer as a message."""
    text, _, call = answer.partition("<tool_call>")
    try:
        function = json.loads(call.partition("</tool_call>")[0])
        return {
            "role": "assistant",
            "content": text.strip(),
            "tool_calls": [{"type": "function", "function": function}],
        }
    except ValueError:
        return {"role": "assistant", "content": answer}


def experiment(folder: Path, family: str, seed: int, steps: int) -> Shares:
    """Distill one student, and return the shares of right calls."""
    teacher_name, teacher, teacher_tokenizer = make_teacher(folder / "teacher", seed, 250)
    student_name, student, student_tokenizer = make_student(folder / "student", family, seed, 80)
    file = folder / "conversations.jsonl"
    rows = [{"messages": messages} for messages in conversations_of(teacher, teacher_tokenizer, 600, seed)]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    config = AlmConfig(
        corpus=CorpusConfig(name="calls", source=FilesSource(urls=(str(file),)), messages="messages"),
        teacher=teacher_name,
        student=StudentConfig(model=student_name),
        score=ScoreConfig(dtype="float32"),
        objective=ObjectiveConfig(temperature=1.0, assistant_only=True),
        train=TrainConfig(
            steps=steps, batch_tokens=1024, row_tokens=512, learning_rate=3e-3, checkpoint_steps=10_000, seed=seed
        ),
        evaluation=EvaluationConfig(samples=0, steps=10_000, max_examples=20),
    )
    pipeline = Pipeline(config, str(folder / "data"))
    pipeline.run()
    distilled = AutoModelForCausalLM.from_pretrained(pipeline.student.path)
    return Shares(
        right_calls(teacher, teacher_tokenizer, seed),
        right_calls(student, student_tokenizer, seed),
        right_calls(distilled, student_tokenizer, seed),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--students", nargs="+", default=["llama3_1", "qwen3_coder"], choices=list(FAMILIES), metavar="FAMILY"
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--root", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a step is so small that threads cost more than they save
    print(f"{'student':14} seed  teacher  before   after")
    for family in options.students:
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory(dir=options.root) as scratch:
                shares = experiment(Path(scratch), family, seed, options.steps)
            print(f"{family:14} {seed:4}" + "".join(f"{100 * share:7.1f}%" for share in shares), flush=True)


if __name__ == "__main__":
    main()
