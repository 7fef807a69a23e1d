"""vLLM in process (the build for processors) as the writer of rollouts, against transformers and against itself."""

import json
import sys
from typing import Any

from alm_pipeline.config import SamplingConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.rollouts.local_writer import LocalWriter
from alm_pipeline.rollouts.prompts import Prompt
from alm_pipeline.rollouts.vllm_writer import model_writer
from alm_pipeline.rollouts.written import Written
from tests.served.environment import ARGUMENTS, needs_vllm, run_python

pytestmark = needs_vllm
DEMO = "demo:smollm2-135m-instruct"
TEXTS = ["The capital of France is", "def add(left, right):", "Once upon a time, there", "1, 2, 3, 4,"]
CHAT = [{"role": "user", "content": "What is the capital of France?"}]


def prompts() -> list[Prompt]:
    plain = [Prompt(str(number), "train", text, None, None) for number, text in enumerate(TEXTS)]
    return [*plain, Prompt("chat", "train", None, CHAT, None)]


def sampling(**settings: Any) -> SamplingConfig:
    return SamplingConfig.model_validate({"max_tokens": 12, "engine": "vllm", "vllm_arguments": ARGUMENTS, **settings})


def main() -> None:
    """In vLLM's environment: write as often as there are settings in the arguments, each with a round."""
    for argument in sys.argv[1:]:
        settings = json.loads(argument)
        writer = model_writer(ModelReference(DEMO), sampling(**settings["sampling"]))
        chosen = [prompts()[number] for number in settings["prompts"]]
        found = writer.write(chosen, [settings["round"]] * len(chosen), "none")
        writer.release()
        rows = [[row.finish_reason, list(row.ids or ())] if isinstance(row, Written) else str(row) for row in found]
        print("\nROWS " + json.dumps(rows), flush=True)


def written(*calls: dict[str, Any]) -> list[list[Any]]:
    """Return the finish reason and the tokens of each text, by call."""
    every = list(range(len(prompts())))
    arguments = [json.dumps({"sampling": {}, "round": 1, "prompts": every, **call}) for call in calls]
    printed = run_python(["-m", "tests.served.test_vllm_writer", *arguments])
    return [json.loads(line[5:]) for line in printed.splitlines() if line.startswith("ROWS ")]


def test_likeliest_texts_are_those_of_transformers_and_drawn_ones_belong_to_rows() -> None:
    likeliest, drawn, alone, other_round = written(
        {"sampling": {"temperature": 0.0}}, {}, {"prompts": [2]}, {"round": 2}
    )
    writer = LocalWriter(ModelReference(DEMO), SamplingConfig(max_tokens=12, temperature=0.0))
    expected = writer.write(prompts(), [1] * len(prompts()), "none")
    assert likeliest == [[row.finish_reason, list(row.ids or ())] for row in expected if isinstance(row, Written)]
    assert len({json.dumps(row) for row in drawn}) == len(drawn)
    # a text's seed is its own, whatever is written beside it
    assert alone == [drawn[2]]
    assert other_round != drawn != likeliest


if __name__ == "__main__":
    main()
