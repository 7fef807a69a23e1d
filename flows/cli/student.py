"""The commands for finished students: report, curves, push."""

from pathlib import Path
from typing import Annotated

import typer

from alm_pipeline.config.fields.repeated import each_once
from alm_pipeline.preflight.storage_probe import require_picture, require_writable_file
from flows.terminal.console import err, out, user_errors, write_picture
from storage.errors import UserError

student_commands = typer.Typer()


@student_commands.command()
def report(
    urls: Annotated[
        list[str],
        typer.Argument(metavar="URL", help="The folders of one or more finished students.", default_factory=list),
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The .html file to write.")],
    teacher: Annotated[
        bool, typer.Option("--teacher", help="Load the teacher as well, and let it continue the samples.")
    ] = False,
    calibration: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER", help="Also show what `alm calibrate` wrote there; may be repeated."),
    ] = None,
) -> None:
    """Write one HTML page about students: results, curves, samples, what was left out and why, settings, lineage.

    Several students are shown side by side. The page is a single file that fetches nothing. A run writes the same page
    about its student into the student's folder: runs/report.html.
    """
    from alm_pipeline.runtime.progress import progress_bars

    with user_errors(), progress_bars(err):
        if file.suffix != ".html":
            raise UserError(f"{file}: not an .html file: name it last, `alm report URL... FILE.html`")
        if not urls:
            raise UserError(f"{file}: no student is named: `alm report URL... {file}`")
        require_writable_file("FILE", file)
        from alm_pipeline.student_report.page import report_page
        from alm_pipeline.student_report.teacher import loaded_teachers

        urls, calibrations = each_once(urls), each_once(calibration or ())
        page = report_page(urls, teacher=loaded_teachers() if teacher else None, calibration=calibrations)
        write_picture(file, page.encode(), "FILE")
        out.print_line(f"{file}: {len(urls)} {'student' if len(urls) == 1 else 'students'}")


@student_commands.command()
def curves(
    urls: Annotated[list[str], typer.Argument(metavar="URL", help="The folders of one or more students.")],
    picture: Annotated[Path, typer.Option(metavar="FILE", help="The .png file to write.")] = Path("curves.png"),
) -> None:
    """Draw the training of students: loss, divergence, held-out bits per byte, learning rate, gradient norm, speed.

    Several students are drawn in one picture, to compare them. They are named by the settings in which they differ.
    """
    from alm_pipeline.training.student.curves import draw_curves, read_named_curves

    with user_errors():
        require_picture("--picture", picture)
        urls = each_once(urls)
        content = draw_curves(read_named_curves(urls))
        write_picture(picture, content)
        out.print_line(f"{picture}: {len(urls)} {'run' if len(urls) == 1 else 'runs'}")


@student_commands.command()
def push(
    url: Annotated[str, typer.Argument(metavar="URL", help="The folder of a finished student.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="The repository on the Hugging Face Hub: USER/NAME.")],
    private: Annotated[
        bool, typer.Option("--private/--public", help="Whether a repository that does not exist yet is private.")
    ] = True,
) -> None:
    """Publish a finished student on the Hugging Face Hub: its model, tokenizer, model card, metrics and curves.

    The Hub's token comes from the environment variable HF_TOKEN or from `hf auth login`.
    """
    from alm_pipeline.training.student.publish import push as push_student
    from alm_pipeline.training.student.publish import stored_student

    with user_errors():
        out.print_line(push_student(stored_student(url), repo, private))
