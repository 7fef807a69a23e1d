"""What this machine remembers of its speed."""

from pathlib import Path

import pytest

from alm_pipeline.planning.speed import rates
from alm_pipeline.planning.speed.rates import STARTUP_S, Work, find_rate, record_rate, seconds_of

SCORE = Work(stage="score", model="a", parameters=100, settings="s", devices=("cpu",))


def test_a_job_that_was_done_tells_the_next_one_s_duration() -> None:
    assert find_rate(SCORE) is None
    record_rate(SCORE, 1000, 10 + STARTUP_S["score"])
    assert find_rate(SCORE) == pytest.approx(100)
    assert seconds_of("score", 2000, 100) == pytest.approx(20 + STARTUP_S["score"])
    assert seconds_of("score", 0, 100) == 0


def test_a_much_smaller_job_does_not_replace_a_larger_one() -> None:
    record_rate(SCORE, 1000, 10 + STARTUP_S["score"])
    record_rate(SCORE, 10, 30)
    assert find_rate(SCORE) == pytest.approx(100)
    record_rate(SCORE, 900, 30 + STARTUP_S["score"])
    assert find_rate(SCORE) == pytest.approx(30)


def test_other_settings_and_models_count_where_nothing_closer_does() -> None:
    record_rate(SCORE, 1000, 10 + STARTUP_S["score"])
    assert find_rate(SCORE.model_copy(update={"settings": "other"})) == pytest.approx(100)
    twice_as_large = SCORE.model_copy(update={"model": "b", "parameters": 200})
    assert find_rate(twice_as_large) == pytest.approx(50)
    assert find_rate(twice_as_large.model_copy(update={"parameters": None})) is None
    assert find_rate(SCORE.model_copy(update={"devices": ("cuda:0",)})) is None
    assert find_rate(SCORE.model_copy(update={"stage": "train"})) is None


@pytest.mark.parametrize(("parameters", "rate"), [(1000, 10), (10, 1000), (1001, None), (9, None), (10**9, None)])
def test_a_model_of_quite_another_size_says_nothing(parameters: int, rate: float | None) -> None:
    """After a first try with a tiny model, a large one must not be planned to take years."""
    record_rate(SCORE, 1000, 10 + STARTUP_S["score"])
    found = find_rate(SCORE.model_copy(update={"model": "b", "parameters": parameters}))
    assert found == (rate and pytest.approx(rate))


def test_of_two_other_models_the_nearer_one_in_size_counts() -> None:
    for model, parameters, seconds in (("small", 20, 1), ("large", 300, 100)):
        record_rate(SCORE.model_copy(update={"model": model, "parameters": parameters}), 1000, seconds * 10 + 3)
    assert find_rate(SCORE) == pytest.approx(3.0)


@pytest.mark.parametrize(("amount", "seconds"), [(0, 5), (5, 0)])
def test_nothing_done_is_no_rate(amount: float, seconds: float) -> None:
    record_rate(SCORE, amount, seconds)
    assert find_rate(SCORE) is None


def test_damaged_records_and_a_folder_that_can_not_be_written_are_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_rate(SCORE, 1000, 20)
    (record,) = Path(vars(rates)["cache_folder"](), "rates").glob("*.json")
    record.write_bytes(b'{"work": 1}')
    assert find_rate(SCORE) is None
    (tmp_path / "rates").write_text("a file")
    monkeypatch.setattr(rates, "cache_folder", lambda: tmp_path)
    record_rate(SCORE, 1000, 20)
    assert find_rate(SCORE) is None
