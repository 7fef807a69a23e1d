"""A real vLLM server without the plugin: hidden states, and this project's own head. Prefill in chunks, both ways."""

import json
from pathlib import Path

import numpy as np
import pytest

from alm_pipeline.config import ScoreConfig
from alm_pipeline.models.reference import ModelReference
from alm_pipeline.scoring.scorer import Scorer, TokenScores
from alm_pipeline.scoring.served.probes import TEXTS
from alm_pipeline.scoring.served_scorer import open_served_scorer
from storage.errors import UserError
from tests import tiny
from tests.served.environment import CLOSE, needs_vllm, run_python
from tests.served.servers import DEMO, config, encoded, largest_difference, server, small_llama

pytestmark = needs_vllm
BY_STATES = {"hidden_states": True, "head_device": "cpu"}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ModelReference:
    return small_llama(tmp_path_factory.mktemp("small"), 0)


def own_scores(teacher: ModelReference, texts: list[np.ndarray], dtype: str = "float32") -> list[TokenScores]:
    return Scorer.load(teacher, ScoreConfig.model_validate({"dtype": dtype}), "cpu").score(texts)


def test_scores_by_hidden_states_are_those_of_transformers() -> None:
    """In float32 in three scripts; and a server of completions is asked for them in vain."""
    teacher = ModelReference(DEMO)
    texts = encoded(teacher, [*TEXTS, *tiny.TEXTS])
    with server(teacher, served=BY_STATES) as url:
        with open_served_scorer(teacher, config(url, served=BY_STATES)) as served:
            found = served.score(texts)
            assert served.description == "vllm 0.32.0 by hidden states, float32, quantization unknown"
        with pytest.raises(UserError, match=r"answers 404.*set score\.served\.hidden_states to true"):
            open_served_scorer(teacher, config(url)).__enter__()
        with open_served_scorer(teacher, config(url, served={**BY_STATES, "probe": "windows"})) as served:
            assert largest_difference(served.score(texts[:1]), found[:1]) < CLOSE
    difference = largest_difference(found, own_scores(teacher, texts))
    print(f"largest difference from transformers: {difference:.2g} nats")
    assert difference < CLOSE


def test_vllm_in_this_process_returns_hidden_states_too(small: ModelReference, tmp_path: Path) -> None:
    texts = encoded(small, list(TEXTS))
    script = tmp_path / "score.py"
    script.write_text(
        "import sys, numpy as np\n"
        "from alm_pipeline.config import ScoreConfig\n"
        "from alm_pipeline.models.reference import ModelReference\n"
        "from alm_pipeline.scoring.served_scorer import open_served_scorer\n"
        "if __name__ == '__main__':\n"
        "    texts = [np.array(ids, np.int32) for ids in eval(sys.argv[2])]\n"
        "    served = {'arguments': ['--enforce-eager'], 'hidden_states': True, 'head_device': 'cpu'}\n"
        "    config = ScoreConfig(engine='vllm', dtype='float32', served=served)\n"
        "    with open_served_scorer(ModelReference(sys.argv[1]), config) as scorer:\n"
        "        scores = scorer.score(texts)\n"
        "    print('SCORES', [[part.tolist() for part in row] for row in scores])\n"
    )
    printed = run_python([str(script), small.name, str([ids.tolist() for ids in texts])])
    line = next(line for line in printed.splitlines() if "SCORES" in line)
    rows = json.loads(line.partition("SCORES ")[2].replace("nan", "NaN"))
    found = [TokenScores(*(np.array(part) for part in row)) for row in rows]
    assert largest_difference(found, own_scores(small, texts)) < CLOSE


@pytest.mark.parametrize("served", [{}, BY_STATES], ids=["plugin", "hidden states"])
def test_prefill_in_chunks_changes_nothing(small: ModelReference, served: dict[str, object]) -> None:
    """Texts of up to 500 tokens, of which vLLM takes 48 in a step: rows are cut, and share steps."""
    chunks = ("--max-num-batched-tokens", "48", "--max-num-seqs", "8")
    texts = [ids[:500] for ids in encoded(small, [" ".join(tiny.TEXTS) * 3, *TEXTS, *tiny.TEXTS])]
    assert max(map(len, texts)) > 4 * 48
    with (
        server(small, arguments=chunks, served=served) as url,
        open_served_scorer(small, config(url, served=served)) as scorer,
    ):
        found = scorer.score(texts)
    assert largest_difference(found, own_scores(small, texts)) < CLOSE
