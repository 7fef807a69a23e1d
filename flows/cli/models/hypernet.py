"""The command `alm hypernet`: trains a network that gives a model any tokenizer."""

from pathlib import Path
from typing import Annotated

import typer

from flows.storage_block import storage_root
from flows.terminal.console import JsonOption, Shown, err, out, user_errors
from flows.terminal.options import Storage

hypernet_commands = typer.Typer()


@hypernet_commands.command()
def hypernet(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration: a YAML or JSON file.")],
    storage: Storage = "alm-data",
    as_json: JsonOption = False,
) -> None:
    """Train a hypernetwork for a model: a network that predicts the embeddings of any tokenizer's tokens.

    Each step draws a tokenizer at random, and only the network is trained. Real tokenizers, which are never drawn,
    decide which step is kept. Interrupted anywhere, the same command resumes. `alm transfer --initialization
    hypernetwork` and `alm generate --tokenizer` use the result.
    """
    with user_errors():
        from alm_pipeline.hypernetwork.settings import load_hypernet_config
        from alm_pipeline.hypernetwork.stage import HypernetPipeline
        from alm_pipeline.runtime.progress import progress_bars

        chosen = load_hypernet_config(config)
        with progress_bars(err):
            made = HypernetPipeline(chosen, storage_root(storage))
            results = made.run().results
        url = made.hypernetwork.url
        rows = [{"tokenizer": name, **bits} for name, bits in results["held_out_bits_per_byte_by_tokenizer"].items()]
        if as_json:
            out.write_json({"hypernetwork": url, "tokenizers": rows, "chosen_step": results["chosen_step"]})
            return
        out.print_rows(TOKENIZERS, rows, f"{url}: held-out bits per byte, step {results['chosen_step']:,} is kept")


TOKENIZERS = (
    Shown("tokenizer", "tokenizer"),
    *(Shown(method, method, "{:.4f}".format) for method in ("fvt", "focus", "hypernetwork")),
)
