"""The command `alm serve`: a server that scores for runs with `score.engine: http`."""

import os
import shlex
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from alm_pipeline.config import Dtype
from alm_pipeline.config.fields.unread import refuse_unread
from flows.terminal.console import err, out, user_errors
from flows.terminal.options import MODEL, TrustRemoteCode

serving = typer.Typer()
PLUGIN_FILE = Path("alm-scores.json")


@serving.command()
def serve(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help=f"The teacher: {MODEL}.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGUMENTS…]", help="Further arguments of the server's command.")
    ] = None,
    file: Annotated[
        Path, typer.Option(help="Where to write the file that the plugin reads: the teacher's boundary tokens.")
    ] = PLUGIN_FILE,
    dtype: Annotated[Dtype, typer.Option(help="The dtype to compute in: score.dtype.")] = "bfloat16",
    window: Annotated[int | None, typer.Option(min=4, help="The longest row of tokens: score.window.")] = None,
    top_k: Annotated[int, typer.Option(min=0, max=64, help="The likeliest tokens per position: score.top_k.")] = 0,
    quantization: Annotated[
        str | None, typer.Option(help="How to quantize the teacher while it is loaded: score.served.quantization.")
    ] = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs that share each layer.")] = 1,
    pipeline_parallel: Annotated[int, typer.Option(min=1, help="Groups of GPUs that share the layers.")] = 1,
    batched_tokens: Annotated[int | None, typer.Option(min=1, help="The maximum number of tokens per step.")] = None,
    hidden_states: Annotated[
        bool,
        typer.Option(
            "--hidden-states", help="Return hidden states, without the plugin: for score.served.hidden_states."
        ),
    ] = False,
    command: Annotated[str, typer.Option(help="The server's command.")] = "vllm serve",
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen at.")] = 8000,
    trust_remote_code: TrustRemoteCode = False,
    print_only: Annotated[
        bool, typer.Option("--print", help="Write the plugin's file and print the command, without running it.")
    ] = False,
) -> None:
    """Start a vLLM server that scores: with the plugin alm-scores, and the settings that exact scores need.

    Runs with `score.engine: http` and its address in `score.served.urls` use it. It is for scoring only: what it
    generates is meaningless. Ctrl-C ends it. With --hidden-states it needs no plugin, and the run computes the head.
    """
    with user_errors():
        from alm_pipeline.config import ScoreConfig, ServedConfig
        from alm_pipeline.models.reference import ModelReference
        from alm_pipeline.scoring.served.server import server_arguments, server_environment, shell_command
        from alm_pipeline.scoring.served.vocabulary import ServedVocabulary

        if hidden_states:
            refuse_unread("no plugin reads it", file=(file, PLUGIN_FILE), top_k=(top_k, 0))
        served = ServedConfig(
            quantization=quantization,
            tensor_parallel=tensor_parallel,
            pipeline_parallel=pipeline_parallel,
            batched_tokens=batched_tokens,
            hidden_states=hidden_states,
            arguments=tuple(arguments or ()),
        )
        config = ScoreConfig(engine="http", dtype=dtype, window=window, top_k=top_k, served=served)
        model = ModelReference(teacher, trust_remote_code)
        model.refuse_served_adapter()
        if not hidden_states:
            vocabulary = ServedVocabulary.of(model)
            vocabulary.write(file)
            err.print_line(f"{file}: {len(vocabulary.boundary_ids):,} boundary tokens of {vocabulary.rows:,}")
        environment = server_environment(config, file.absolute())
        address = ("--host", host, "--port", str(port))
        parts = (*shlex.split(command), *server_arguments(model, config), *address)
        if print_only:
            out.print_line(shell_command(parts, environment))
            return
        status = _run(parts, environment)
    raise typer.Exit(status)


def _run(command: tuple[str, ...], environment: dict[str, str]) -> int:
    """Return the command's exit status. Raises UserError if it is not installed here."""
    from storage.errors import UserError

    try:
        return subprocess.call(command, env={**os.environ, **environment})
    except OSError as error:
        raise UserError(
            f"{command[0]}: can't be started ({error.strerror}): name vLLM's command with --command, or print the "
            "command with --print and run it where vLLM is installed"
        ) from error
