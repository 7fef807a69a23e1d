"""The edit of one token: its functions and their inverses, against NumPy and the definition."""

import numpy as np
import pytest
import torch

from alm_pipeline.editing.directions.modeling_edited import EDGE, Edit, apply_function, apply_inverse

FUNCTIONS = {
    "none": lambda x: x,
    "squared_exponential": lambda x: np.exp(-(x**2) / 2),
    "tanh": np.tanh,
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
}
VALUES = np.linspace(-3, 3, 61)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_inverse_undoes_the_function(name: str) -> None:
    mapped = apply_function(name, torch.from_numpy(VALUES))
    np.testing.assert_allclose(mapped, FUNCTIONS[name](VALUES), atol=1e-12)
    back = apply_inverse(name, mapped).numpy()
    # the squared exponential is even: only the size comes back, −2 as 2 and not as 4
    np.testing.assert_allclose(back, np.abs(VALUES) if name == "squared_exponential" else VALUES, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("tanh", (np.arctanh(-1 + EDGE), np.arctanh(1 - EDGE))),
        ("elu", (np.log(EDGE), 5.0)),
        ("squared_exponential", (np.sqrt(-2 * np.log(EDGE)), 0.0)),
    ],
)
def test_the_inverse_is_cut_where_it_has_no_value(name: str, ends: tuple[float, float]) -> None:
    values = apply_inverse(name, torch.tensor([-5.0, 5.0], dtype=torch.float64))
    np.testing.assert_allclose(values, ends, rtol=1e-6)


def test_an_unknown_function_is_refused() -> None:
    for apply in (apply_function, apply_inverse):
        with pytest.raises(ValueError, match="sigmoid"):
            apply("sigmoid", torch.zeros(1))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_edit_is_that_of_the_definition(name: str) -> None:
    random = np.random.default_rng(0)
    keep, drop = (np.linalg.qr(random.normal(size=(12, 12)))[0][:, :rank] for rank in (5, 3))
    edit = Edit(12, 5, 3, name).double()
    edit.keep.copy_(torch.from_numpy(keep))
    edit.drop.copy_(torch.from_numpy(drop))
    rows = random.normal(size=(2, 4, 12))
    inverse = {
        "none": lambda y: y,
        "squared_exponential": lambda y: np.sqrt(-2 * np.log(np.clip(y, EDGE, 1))),
        "tanh": lambda y: np.arctanh(np.clip(y, -1 + EDGE, 1 - EDGE)),
        "elu": lambda y: np.where(y > 0, y, np.log(np.clip(1 + y, EDGE, 1))),
    }[name]
    kept, dropped = keep @ keep.T, np.eye(12) - drop @ drop.T
    for place in np.ndindex(2, 4):
        mapped = FUNCTIONS[name](rows[place])
        y = inverse(kept @ mapped) + inverse(dropped @ mapped)
        expected = y * np.linalg.norm(rows[place]) / np.linalg.norm(y)
        np.testing.assert_allclose(edit(torch.from_numpy(rows))[place], expected, atol=1e-9)


def test_a_shift_is_added() -> None:
    edit = Edit(3, shift=True)
    edit.shift.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert edit(torch.ones(2, 3, dtype=torch.bfloat16)).tolist() == [[2.0, 3.0, 4.0]] * 2
