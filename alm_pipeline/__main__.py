"""The entry point of the command `alm`, and of `python -m alm_pipeline`.

It is here and not beside the commands, in `flows.cli`, because a user's own package `flows` may shadow ours. It finds
the command line by name, so that this package imports nothing of `flows`.
"""

import sys
from importlib import import_module

from alm_pipeline.runtime.own_packages import require_own
from alm_pipeline.runtime.streams import flush_streams, prepare_streams
from alm_pipeline.runtime.supervisor import run_supervised

_EXTRAS = {"prefect": "flows", "httpx": "flows"}
"""packages that only some commands import, and the extra that installs each"""

_RESUMING = ("run", "repair")
"""the commands that skip what an interrupted one has finished"""


def main() -> None:
    """Run the command line in a process that a signal ends within seconds, with one sentence."""
    prepare_streams()  # first: it may start the process again
    resumes = sys.argv[1:2] and sys.argv[1] in _RESUMING
    run_supervised(
        _run, "the same command goes on from here, and nothing is lost" if resumes else "run the same command again"
    )


def _run() -> None:
    """Run the command line; report what keeps it from starting in one sentence."""
    try:
        require_own("flows")
        _run_commands()
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _EXTRAS:
            raise
        sys.exit(f"error: this command needs {package}: pip install 'alm-pipeline[{_EXTRAS[package]}]'")
    except ImportError as error:
        if error.name != "flows":
            raise
        sys.exit(f"error: {error}")


def _run_commands() -> None:
    from storage.printed.records import make_output_inert, traceback_text

    make_output_inert()
    try:
        import_module("flows.cli.app").app(prog_name="alm")
    except ImportError:
        raise
    except Exception as error:  # a bug: its traceback is wanted, but not the secrets in it
        sys.exit(traceback_text(error))
    finally:
        flush_streams()


if __name__ == "__main__":
    main()
