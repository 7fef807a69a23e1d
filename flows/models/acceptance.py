"""The flow `acceptance`: how many of its drafts' tokens a model accepts in speculative decoding."""

from typing import Annotated, Any

from prefect import get_run_logger
from prefect.artifacts import create_table_artifact
from pydantic import Field

from alm_pipeline.config import Dtype, Whole
from flows.execution.inert_run import inert_flow, inert_run
from flows.run_name import run_name
from flows.tasks import log_stages_at_info
from storage.printed.counts import counts_in_words
from storage.printed.inert import one_line

Count = Annotated[Whole, Field(ge=1)]
_acceptance_name = run_name("acceptance", lambda parameters: f"acceptance by {parameters['target']}")


@inert_flow("acceptance", _acceptance_name)
def acceptance(
    target: str,
    drafts: list[str],
    corpus: str,
    text: str = "text",
    examples: Count = 50,
    ahead: Count = 5,
    prompt_tokens: Count = 32,
    max_tokens: Annotated[Whole, Field(ge=2)] = 64,
    dtype: Dtype = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Measure how many of a draft's tokens a large model accepts in speculative decoding, greedily.

    Args:
        target: The large model: a local folder, a name on the Hub, or demo:NAME.
        drafts: Small models with the same tokenizer: local folders, URLs of stored students, names on the Hub, or
            demo:NAME.
        corpus: URL of Parquet, Arrow, JSON, CSV or text files, whose beginnings go on.
        text: The column of the corpus that holds the text, or a template of columns: '{question} {answer}'.
        examples: The number of texts to take from the corpus.
        ahead: The number of tokens that a draft proposes at once.
        prompt_tokens: The number of a text's tokens that are continued.
        max_tokens: The maximum number of new tokens per text.
        dtype: The dtype to compute in.
        device: cpu, cuda:1, …; by default the GPU, if there is one.
        trust_remote_code: Whether to run code in a model's folder.
    """
    with inert_run():
        from alm_pipeline.comparison.corpora import texts_at
        from alm_pipeline.comparison.drafts import compare_drafts

        log_stages_at_info()
        found, left_out = compare_drafts(
            target,
            drafts,
            texts_at(corpus, text, examples),
            ahead=ahead,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        rows = [result.row() for result in found]
        get_run_logger().info("%s: left out: %s", one_line(corpus), counts_in_words(left_out))
        table = [{name: _cell(value) for name, value in row.items()} for row in rows]
        create_table_artifact(table, key="alm-acceptance", description=f"Accepted by {one_line(target)}")
        return {"target": target, "ahead": ahead, "left_out": left_out, "drafts": rows}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else one_line(value)
