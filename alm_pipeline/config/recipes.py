"""Recipes: functions that return a complete configuration, to run or to start from."""

import sysconfig
from collections.abc import Callable

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
from storage.errors import UserError

SMOLLM2 = "demo:smollm2-135m-instruct"
GEMMA3 = "demo:gemma-3-270m"


def transfer() -> AlmConfig:
    """Tokenizer transfer: SmolLM2-135M gets a tokenizer trained on Python's standard library and is its own teacher."""
    return AlmConfig(
        corpus=python_source(),
        teacher=SMOLLM2,
        student=StudentConfig(model=SMOLLM2, tokenizer=TrainedTokenizer(vocab_size=16_384)),
        objective=ObjectiveConfig(temperature=5.0),
        train=demo_training(steps=48),
    )


def maths() -> AlmConfig:
    """Across model families: Gemma-3-270M teaches SmolLM2-135M math problems; each has its own tokenizer."""
    return AlmConfig(
        corpus=maths_problems(),
        teacher=GEMMA3,
        student=StudentConfig(model=SMOLLM2),
        objective=ObjectiveConfig(temperature=5.0),
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


RECIPES: dict[str, Callable[[], AlmConfig]] = {"transfer": transfer, "maths": maths, "bytes": byte_level}


def recipe(name: str) -> AlmConfig:
    """Return the recipe of this name. Raises UserError listing the available names."""
    if name not in RECIPES:
        raise UserError(f"{name}: not a recipe; available: {', '.join(RECIPES)}, or name a YAML or JSON file")
    return RECIPES[name]()
