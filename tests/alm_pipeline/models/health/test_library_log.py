"""transformers' bars are off, and its warnings are heard: once each, in this project's log."""

import json
import logging
from pathlib import Path

import pytest
from transformers.utils import logging as transformers_logging

from alm_pipeline.models.health.library_log import HARMLESS, load_reports, quiet_transformers
from alm_pipeline.models.loading import load_model
from alm_pipeline.models.tokenizer import LoadedTokenizer
from storage.printed.records import make_output_inert
from tests import tiny

LIBRARY = transformers_logging.get_logger("transformers.modeling_utils")


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="alm_pipeline")
    return caplog


def test_bars_stay_off_after_an_inner_block() -> None:
    enabled = transformers_logging.is_progress_bar_enabled()
    with quiet_transformers():
        with quiet_transformers():
            pass
        assert not transformers_logging.is_progress_bar_enabled()
    assert transformers_logging.is_progress_bar_enabled() == enabled


def test_a_warning_is_passed_on_once(heard: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_transformers(), quiet_transformers():
        LIBRARY.warning("\x1b[1mrope_theta\x1b[0m is ignored")
        LIBRARY.warning("rope_theta is ignored")
        LIBRARY.error("this is worse")
        LIBRARY.info("as always")
    assert [(record.levelname, record.message) for record in heard.records] == [
        ("WARNING", "transformers: rope_theta is ignored"),
        ("ERROR", "transformers: this is worse"),
    ]
    # where an earlier test started Prefect, its handler writes this project's log; transformers itself writes nothing
    assert [line for line in capfd.readouterr().err.splitlines() if " | alm_pipeline - " not in line] == []


def test_colors_are_left_out_of_a_commands_log(heard: pytest.LogCaptureFixture) -> None:
    make_output_inert()
    with quiet_transformers():
        LIBRARY.warning("\x1b[31mrope_scaling\x1b[0m is ignored")
    assert heard.messages == ["transformers: rope_scaling is ignored"]


@pytest.mark.parametrize("propagates", [False, True])
def test_outside_it_writes_as_it_does(
    propagates: bool, heard: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers propagates where the environment has CI; inside, a warning is heard once all the same."""
    root = logging.getLogger("transformers")
    monkeypatch.setattr(root, "propagate", propagates)
    before = list(root.handlers), root.level, root.propagate
    with quiet_transformers():
        assert root.handlers != before[0]
        LIBRARY.warning("propagates: %s", propagates)
    assert heard.messages == [f"transformers: propagates: {propagates}"]
    assert (root.handlers, root.level, root.propagate) == before


@pytest.mark.parametrize("warning", HARMLESS)
def test_what_says_nothing_about_results_is_left_out(warning: str, heard: pytest.LogCaptureFixture) -> None:
    with quiet_transformers():
        LIBRARY.warning("%s, and so on", warning)
    assert heard.messages == []
    assert HARMLESS[warning]


@pytest.mark.parametrize("verbosity", [logging.ERROR, logging.WARNING])
def test_a_report_about_weights_is_collected(verbosity: int, heard: pytest.LogCaptureFixture) -> None:
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(verbosity)  # a user may have silenced the library
    try:
        with quiet_transformers(), load_reports() as reports:
            LIBRARY.warning("Llama LOAD REPORT from: here")
    finally:
        transformers_logging.set_verbosity(before)
    assert reports == ["Llama LOAD REPORT from: here"]
    assert heard.messages == []


def test_loading_what_is_sound_says_nothing(
    llama_folder: str, gemma_folder: str, heard: pytest.LogCaptureFixture
) -> None:
    for folder in (llama_folder, gemma_folder):
        load_model(folder, "float32", device="cpu")
        _ = LoadedTokenizer(folder).fast
    assert heard.messages == []


@pytest.mark.bad_input
def test_a_warning_about_a_configuration_is_heard(tmp_path: Path, heard: pytest.LogCaptureFixture) -> None:
    tiny.save(tmp_path, tiny.tiny_llama(400), tiny.byte_level_tokenizer())
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "bos_token_id": 5000}))
    load_model(str(tmp_path), "float32", device="cpu")
    (message,) = [message for message in heard.messages if "bos_token_id" in message]
    assert message.startswith("transformers: ")
