"""The commands for finished students: curves, push."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.console import out, user_errors
from storage.errors import UserError

student_commands = typer.Typer()


@student_commands.command()
def curves(
    urls: Annotated[list[str], typer.Argument(metavar="URL...", help="students' folders")],
    picture: Annotated[Path, typer.Option(metavar="FILE", help="where the picture goes, a .png")] = Path("curves.png"),
) -> None:
    """Draw students' training: loss, divergence, held-out bits per byte, learning rate, gradient, speed.

    Several students are drawn into one picture, to compare them.
    """
    from alm_pipeline.training.student.curves import draw_curves, read_curves

    with user_errors():
        if picture.suffix != ".png":
            raise UserError(f"--picture {picture}: is no .png: write FILE.png")
        content = draw_curves([read_curves(url) for url in urls])
        try:
            picture.write_bytes(content)
        except OSError as error:
            raise UserError(f"--picture {picture}: can't be written ({error.strerror})") from error
        out.print(f"{picture}: {len(urls)} {'run' if len(urls) == 1 else 'runs'}", highlight=False, markup=False)


@student_commands.command()
def push(
    url: Annotated[str, typer.Argument(metavar="URL", help="a finished student's folder")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="USER/NAME on the Hugging Face hub")],
    private: Annotated[bool, typer.Option("--private/--public", help="of a repository that has to be made")] = True,
) -> None:
    """Publish a finished student on the Hugging Face hub: its model, tokenizer, card, metrics and curves.

    The token comes from the environment (HF_TOKEN, or `hf auth login`).
    """
    from alm_pipeline.training.student.publish import push as push_student
    from alm_pipeline.training.student.publish import stored_student

    with user_errors():
        out.print(push_student(stored_student(url), repo, private), highlight=False, markup=False, soft_wrap=True)
