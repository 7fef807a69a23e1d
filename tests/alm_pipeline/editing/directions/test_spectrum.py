"""Directions from demonstrations, against the definitions, and what they do on activations whose edit is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alm_pipeline.editing.directions.modeling_edited import Edit
from alm_pipeline.editing.directions.spectrum import leading_count, signature, spectra
from alm_pipeline.editing.directions.sums import PairSums, add_up
from storage.errors import UserError
from tests.alm_pipeline.editing.synthetic import WIDTH, Array, Drawn, draw, gains, matrix_by_definition


def matrix(rows: Drawn | PairSums, energy: float = 0.99999, *, center: bool = True) -> Array:
    """M = P + Q of the factors that are stored."""
    plus, minus = (found.leading(energy) for found in spectra(rows, center=center))
    return np.asarray(plus @ plus.T + np.eye(WIDTH) - minus @ minus.T)


@pytest.mark.parametrize("seed", range(10))
def test_the_positive_axis_is_doubled_and_the_negative_one_removed(seed: int) -> None:
    drawn = draw(400, seed)
    found = gains(matrix(drawn))
    assert found["positive"] >= 1.9
    assert found["negative"] <= 0.1
    assert found["content"] == pytest.approx(1, abs=0.02)
    assert found["rest"] == pytest.approx(1, abs=0.02)
    mirrored = gains(matrix(Drawn(drawn.neutral, drawn.negative, drawn.positive)))
    assert mirrored["negative"] >= 1.9
    assert mirrored["positive"] <= 0.1


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("energy", [0.9, 0.998, 0.9999])
@pytest.mark.parametrize("count", [25, 60])
def test_the_matrix_is_that_of_the_definition(count: int, energy: float, center: bool) -> None:
    drawn = draw(count, 1)
    expected = matrix_by_definition(drawn, energy, center=center)
    np.testing.assert_allclose(matrix(drawn, energy, center=center), expected, atol=1e-10)
    np.testing.assert_allclose(matrix(PairSums.of(*drawn), energy, center=center), expected, atol=1e-10)


@pytest.mark.parametrize("count", [10, 400])
def test_both_projections_are_symmetric_and_idempotent(count: int) -> None:
    for found in spectra(draw(count, 2), center=True):
        factor = found.leading(0.999)
        for projection in (factor @ factor.T, np.eye(WIDTH) - factor @ factor.T):
            np.testing.assert_allclose(projection @ projection, projection, atol=1e-10)
            np.testing.assert_allclose(projection.T, projection, atol=1e-10)


@pytest.mark.parametrize("count", [10, 400])
@pytest.mark.parametrize("center", [True, False])
def test_any_shards_in_any_order_give_one_matrix(count: int, center: bool) -> None:
    drawn = draw(count, 3)
    expected = matrix(drawn, 0.999, center=center)
    for shards in (1, 3, 8):
        parts = [PairSums.of(*rows) for rows in zip(*(np.array_split(side, shards) for side in drawn), strict=True)]
        for ordered in (parts, parts[::-1]):
            np.testing.assert_allclose(matrix(add_up(ordered), 0.999, center=center), expected, atol=1e-12)


def test_the_norm_of_every_edited_row_is_kept() -> None:
    plus, minus = (found.leading(0.99999) for found in spectra(draw(400, 4), center=True))
    edit = Edit(WIDTH, plus.shape[1], minus.shape[1]).double()
    edit.keep.copy_(torch.from_numpy(plus))
    edit.drop.copy_(torch.from_numpy(minus))
    rows = torch.from_numpy(draw(50, 5).neutral)
    edited = edit(rows)
    assert (edited - rows).abs().max() > 0.1
    torch.testing.assert_close(edited.norm(dim=1), rows.norm(dim=1), rtol=1e-6, atol=1e-6)
    assert torch.equal(edit(torch.zeros(2, WIDTH, dtype=torch.float64)), torch.zeros(2, WIDTH, dtype=torch.float64))


@pytest.mark.parametrize(
    ("values", "energy", "count"),
    [
        ([2, 1, 0], 0.79, 1),
        ([2, 1, 0], 0.8, 1),
        ([2, 1, 0], 0.81, 2),
        ([2, 1, 1], 0.8, 2),  # a tie at the cut: the first counts
        ([1, 1, 1, 1], 0.5, 2),
        ([1, 1, 1, 1], 0.51, 3),
        ([2, 1, 0], 1, 2),  # all of the energy is the rank
        ([1, 1e-18, 0], 1, 1),
        ([1, 1e-7, 0], 1, 2),
        ([3, 2, 1], 1, 3),
    ],
)
def test_the_rank_of_hand_made_spectra(values: list[float], energy: float, count: int) -> None:
    assert leading_count(values, energy) == count


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8), st.floats(0.01, 0.9999))
def test_the_rank_is_the_least_that_has_the_energy(values: list[float], energy: float) -> None:
    values = sorted(values, reverse=True)
    squares, count = np.square(values), leading_count(values, energy)
    assert squares[:count].sum() >= energy * squares.sum() * (1 - 1e-9)
    assert squares[: count - 1].sum() < energy * squares.sum() * (1 + 1e-9)


def test_one_demonstration_is_refused_where_it_is_centered() -> None:
    with pytest.raises(UserError, match="one demonstration"):
        spectra(draw(1, 0), center=True)
    assert gains(matrix(draw(1, 0), center=False))["content"] > 0


def test_constant_activations_are_refused() -> None:
    rows = np.ones((5, WIDTH))
    for given_rows in (Drawn(rows, rows, rows), PairSums.of(rows, rows, rows)):
        with pytest.raises(UserError, match="no covariance"):
            spectra(given_rows, center=True)[0].leading(0.9)


@pytest.mark.parametrize("center", [True, False])
def test_the_signature_is_that_of_stacked_activations_and_labels(center: bool) -> None:
    drawn = draw(30, 6)
    stacked = np.concatenate([drawn.positive, drawn.negative])
    labels = np.repeat(np.eye(2), 30, axis=0)
    if center:
        stacked, labels = stacked - stacked.mean(axis=0), labels - labels.mean(axis=0)
    expected = np.linalg.svd(stacked.T @ labels / len(stacked), compute_uv=False).sum()
    means = drawn.positive.mean(axis=0), drawn.negative.mean(axis=0)
    assert signature(*means, center=center) == pytest.approx(expected)
