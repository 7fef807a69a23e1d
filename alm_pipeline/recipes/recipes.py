"""Recipes: functions that return a complete configuration, to run or to start from.

A recipe's parameters are what it can't choose. A recipe without a corpus among them has one of its own, to show what it
does: how that corpus is cut and sampled applies to no other (see `overrides.configure`).
"""

import inspect
import sysconfig
from collections.abc import Callable, Mapping
from typing import Any, Literal, assert_never

from alm_pipeline.config import (
    BYTES,
    AlmConfig,
    CorpusConfig,
    FilesSource,
    GeneratedSource,
    ObjectiveConfig,
    StudentConfig,
    TrainConfig,
    TrainedTokenizer,
)
from alm_pipeline.config.fields.settings import first_sentence
from alm_pipeline.config.fields.spelling import nearest_with_meaning
from storage.errors import UserError

SMOLLM2 = "demo:smollm2-135m-instruct"
GEMMA3 = "demo:gemma-3-270m"
ALM_AND_SFT = ObjectiveConfig(terms={"alm": 1.0, "sft": 1.0}, balance="temperature", temperature=5.0)
"""ALM keeps a student near its teacher, SFT learns the texts: together they are ahead of either (docs/results.md)"""


def distill(corpus: CorpusConfig, teacher: str, student: str) -> AlmConfig:
    """Distillation: any teacher teaches any student your corpus; each keeps its own tokenizer.

    5,000 steps of 16,384 tokens are 82 million tokens of the student. The published runs of ALM take 5,000 to 20,000
    steps of 32,768 to 65,536 tokens: enough to see what there is to gain, and `--steps` makes it more. As there, the
    learning rate is 1e-5, rises over the first tenth and then falls to 0 in a straight line, and nothing decays. The
    terms are ALM and SFT, as in the published run on math. The temperature is 5, which is better than 100 in the
    paper's comparison. bfloat16 halves the time on a GPU.
    """
    return AlmConfig(
        corpus=corpus,
        teacher=teacher,
        student=StudentConfig(model=student),
        objective=ALM_AND_SFT,
        train=TrainConfig(steps=5000, warmup_steps=500, dtype="bfloat16"),
    )


Goal = Literal["distill", "tokenizer", "bytes"]
"""What a run of one's own is for: a student with its own tokenizer, with a new one, or with bytes."""


def own_run(goal: Goal, corpus: CorpusConfig, teacher: str, student: str, tokenizer: str | None) -> AlmConfig:
    """Return a configuration for any models and texts; without `tokenizer`, a new tokenizer is trained on the corpus.

    The losses for bytes, and their learning rate, are those of the published run.
    """
    config = distill(corpus, teacher, student)
    match goal:
        case "distill":
            return config
        case "tokenizer":
            new = StudentConfig(model=student, tokenizer=tokenizer or TrainedTokenizer())
            return config.model_copy(update={"student": new})
        case "bytes":
            objective = ObjectiveConfig(
                terms={"alm": 1.0, "sft": 1.0, "latents": 1.0}, balance="gradmag", temperature=5.0
            )
            # a row holds the longest text, at one byte per token, and the special tokens around it
            row_tokens = 256 + (corpus.max_bytes or 2048)
            train = config.train.model_copy(update={"learning_rate": 3e-5, "row_tokens": row_tokens})
            new = StudentConfig(model=student, tokenizer=BYTES)
            return config.model_copy(update={"student": new, "objective": objective, "train": train})
        case _:
            assert_never(goal)


def draft(corpus: CorpusConfig, teacher: str, student: str) -> AlmConfig:
    """Speculative decoding: a small model gets a large one's tokenizer, and learns to propose what that one would say.

    The student's tokenizer is the teacher's with its special tokens, so that every id means the same to both. The
    training is that of `distill`.
    """
    config = distill(corpus, teacher, student)
    moved = config.student.model_copy(update={"tokenizer": teacher, "special_tokens": "target"})
    return config.model_copy(update={"student": moved})


def transfer() -> AlmConfig:
    """Tokenizer transfer: SmolLM2-135M gets a tokenizer trained on Python's standard library and is its own teacher."""
    return AlmConfig(
        corpus=python_source(),
        teacher=SMOLLM2,
        student=StudentConfig(model=SMOLLM2, tokenizer=TrainedTokenizer(vocab_size=16_384)),
        objective=ALM_AND_SFT,
        train=demo_training(steps=48),
    )


def published() -> AlmConfig:
    """The same transfer as published: ALM alone, debiased at a chunk's end, the temperature 100, no level."""
    config = transfer()
    student = config.student.model_copy(update={"level": "none"})
    objective = ObjectiveConfig(terms={"alm": 1.0}, balance="fixed", debias="end", temperature=100.0)
    return config.model_copy(update={"student": student, "objective": objective})


def maths() -> AlmConfig:
    """Across model families: Gemma-3-270M teaches SmolLM2-135M math problems; each has its own tokenizer."""
    return AlmConfig(
        corpus=maths_problems(),
        teacher=GEMMA3,
        student=StudentConfig(model=SMOLLM2),
        objective=ALM_AND_SFT,
        train=demo_training(steps=40),
    )


def byte_level() -> AlmConfig:
    """Byte-level transfer: SmolLM2-135M gets bytes with n-gram embeddings and is its own teacher.

    The terms are ALM, SFT and hidden states, balanced by GradMag.
    """
    return AlmConfig(
        corpus=python_source(),
        teacher=SMOLLM2,
        student=StudentConfig(model=SMOLLM2, tokenizer=BYTES, ngram_embeddings=True),
        objective=ObjectiveConfig(terms={"alm": 1.0, "sft": 1.0, "latents": 1.0}, balance="gradmag", temperature=5.0),
        # a row holds the longest example, at one byte per token
        train=demo_training(steps=48).model_copy(update={"batch_tokens": 1536, "row_tokens": 1536}),
    )


def python_source() -> CorpusConfig:
    """The source of the interpreter's own standard library, without tests."""
    stdlib = sysconfig.get_paths()["stdlib"]
    return CorpusConfig(
        name="python-stdlib",
        source=FilesSource(
            urls=(f"{stdlib}/**/*.py",),
            exclude=("*/site-packages/*", "*/dist-packages/*", "*/test/*", "*/tests/*", "*/idle_test/*"),
            format="text",
        ),
        max_bytes=1024,
        sample=0.016,
        held_out=0.1,
        shard_bytes=64 * 1024,
    )


def maths_problems() -> CorpusConfig:
    """Word problems with worked solutions, generated from GSM-Symbolic's templates."""
    return CorpusConfig(
        name="gsm-symbolic",
        source=GeneratedSource(task="gsm_symbolic", size=250, seed=0),
        held_out=0.1,
        shard_bytes=64 * 1024,
    )


def demo_training(steps: int) -> TrainConfig:
    """Training that takes minutes on two cores."""
    return TrainConfig(
        steps=steps,
        batch_tokens=1024,
        row_tokens=512,
        learning_rate=2e-4,
        warmup_steps=5,
        dtype="bfloat16",
        checkpoint_steps=12,
    )


RECIPES: dict[str, Callable[..., AlmConfig]] = {
    "distill": distill,
    "draft": draft,
    "transfer": transfer,
    "published": published,
    "maths": maths,
    "bytes": byte_level,
}
_OPEN: Mapping[str, tuple[str, ...]] = {
    "corpus": ("corpus.name", "corpus.source.urls"),
    "teacher": ("teacher",),
    "student": ("student.model",),
}
"""The fields of each parameter of a recipe."""
FOLLOWING: Mapping[str, Mapping[str, str]] = {"draft": {"student.tokenizer": "teacher"}}
"""By recipe: fields that have the value of another field, unless they are given."""


def recipe(name: str, **values: Any) -> AlmConfig:
    """Return the recipe of this name; `values` are its parameters.

    Raises UserError with the nearest name if the recipe does not exist, and with the parameters that are missing.
    """
    make = _recipe(name)
    if missing := [parameter for parameter in required_by(name) if parameter not in values]:
        raise _needs(name, missing)
    return make(**values)


def required_by(name: str) -> tuple[str, ...]:
    """Return the names of what has to be given to a recipe."""
    return tuple(inspect.signature(_recipe(name)).parameters)


def recipe_content(name: str) -> dict[str, Any]:
    """Return a recipe as plain values, with null for each field that has to be given."""
    stand_ins = {"corpus": CorpusConfig(name="open", source=FilesSource(urls=("open",)))}
    content = recipe(
        name, **{parameter: stand_ins.get(parameter, parameter.upper()) for parameter in required_by(name)}
    )
    plain = content.model_dump(mode="json")
    for path in (path for parameter in required_by(name) for path in _OPEN[parameter]):
        *parents, last = path.split(".")
        _section(plain, parents)[last] = None
    return plain


def require_complete(name: str, content: Mapping[str, Any]) -> None:
    """Raise UserError naming what a recipe needs and its content lacks."""
    missing = [
        parameter for parameter in required_by(name) if any(_is_open(content, path) for path in _OPEN[parameter])
    ]
    if missing:
        raise _needs(name, missing)


def _recipe(name: str) -> Callable[..., AlmConfig]:
    if name not in RECIPES:
        meanings = {known: first_sentence(inspect.getdoc(make) or "") for known, make in RECIPES.items()}
        hint = nearest_with_meaning(name, meanings) or f"; there are {', '.join(RECIPES)}"
        raise UserError(f"{name}: not a recipe, and not the name of a YAML or JSON file{hint}")
    return RECIPES[name]


def _needs(name: str, missing: list[str]) -> UserError:
    options = " ".join(f"--{parameter} {'URL' if parameter == 'corpus' else 'MODEL'}" for parameter in missing)
    names = " and ".join(filter(None, [", ".join(f"a {name}" for name in missing[:-1]), f"a {missing[-1]}"]))
    return UserError(f"{name} needs {names}: add {options}, or let `alm init` ask for them")


def _is_open(content: Mapping[str, Any], path: str) -> bool:
    *parents, last = path.split(".")
    section = _section(content, parents)
    return isinstance(section, Mapping) and last in section and section[last] is None


def _section(content: Any, parents: list[str]) -> Any:
    for parent in parents:
        content = content.get(parent) if isinstance(content, Mapping) else None
    return content
