"""Activations whose right edit is known: content of six dimensions, an axis along which only positive activations move,
and one along which only negative ones do."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
WIDTH = 48
_SIZES = np.array([6, 5, 4, 3, 2.5, 2])
_basis = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))[0]
CONTENT, POSITIVE, NEGATIVE, REST = _basis[:, :6], _basis[:, 6], _basis[:, 7], _basis[:, 8:]


class Drawn(NamedTuple):
    """[N, D] activations of each kind of text."""

    neutral: Array
    positive: Array
    negative: Array


def draw(count: int, seed: int) -> Drawn:
    """Neutral activations have both traits at random; positive ones more of theirs and none of the other."""
    random = np.random.default_rng(seed)
    content = random.normal(size=(count, 6)) * _SIZES @ CONTENT.T
    traits = [np.abs(random.normal(size=count)) + 1 for _ in range(2)]

    def noise() -> Array:
        return np.asarray(0.05 * random.normal(size=(count, WIDTH - 8)) @ REST.T)

    neutral = content + np.outer(traits[0], POSITIVE) + np.outer(traits[1], NEGATIVE) + noise()
    positive = content + np.outer(traits[0] + 1, POSITIVE) + noise()
    return Drawn(neutral, positive, content + np.outer(traits[1] + 1, NEGATIVE) + noise())


def matrix_by_definition(drawn: Drawn, energy: float, *, center: bool) -> Array:
    """M = P + Q straight from the definition: covariances by a loop, ranks by counting."""
    sides = [side - side.mean(axis=0) if center else side for side in drawn]
    found = []
    for other in sides[1:]:
        omega = sum(np.outer(h, x) for h, x in zip(sides[0], other, strict=True)) / len(other)
        vectors, values, _ = np.linalg.svd(omega)
        rank = next(k for k in range(1, WIDTH + 1) if (values[:k] ** 2).sum() / (values**2).sum() >= energy)
        found.append((vectors, rank))
    (kept, first), (dropped, second) = found
    return np.asarray(kept[:, :first] @ kept[:, :first].T + dropped[:, second:] @ dropped[:, second:].T)


def gains(matrix: Array) -> dict[str, float]:
    """vᵀ M v along the axes, and on average within content and rest."""
    along = {"positive": POSITIVE[:, None], "negative": NEGATIVE[:, None], "content": CONTENT, "rest": REST}
    return {name: float(np.einsum("dk,de,ek->k", axes, matrix, axes).mean()) for name, axes in along.items()}
