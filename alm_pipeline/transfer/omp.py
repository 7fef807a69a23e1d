"""Orthogonal matching pursuit: composes new tokens from shared ones, in the embedding of a model that has both.

Goddard and Neto 2025, "Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit" (arXiv 2506.06607;
mergekit's tokensurgeon). The donor's embedding has the new tokens. In it, each new token is approximated by K tokens
that both vocabularies have. The same coefficients of the same tokens then give its row in the source's embedding.
Unlike the paper, tokens are selected by their cosine with the residual, as in the textbook algorithm. The paper uses
the product, which prefers long vectors.

Shapes: T targets, B targets of a batch, N shared tokens, D the donor's width, K tokens per sum.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alm_pipeline.runtime.progress import track

_BATCH_PRODUCTS = 2**26
"""entries of a batch's matrix of products: 256 MB"""
_DEPENDENT = 1e-5
"""an atom adds only rounding errors if its part outside the span of the atoms before it is at most this share of it"""


def omp(targets_TD: Tensor, atoms_ND: Tensor, terms: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the atoms [T, K] and the coefficients [T, K] that approximate each target.

    K is `terms`, or less if there are fewer atoms or dimensions. The coefficients are the least-squares solution over
    the selected atoms.
    """
    terms = min(terms, *atoms_ND.shape)
    size = max(1, _BATCH_PRODUCTS // len(atoms_ND))
    results = []
    with track("orthogonal matching pursuit", len(targets_TD), "tokens") as advance:
        for batch_BD in targets_TD.float().split(size):
            results.append(_pursue(batch_BD, atoms_ND.float(), terms))
            advance(len(batch_BD))
    ids, coefficients = zip(*results, strict=True)
    return torch.cat(ids).cpu().numpy(), torch.cat(coefficients).double().cpu().numpy()


def _pursue(targets_BD: Tensor, atoms_ND: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """Return ids and coefficients [B, K], by Gram-Schmidt: `basis` spans the selected atoms, `factors` is R of QR."""
    batch, width = targets_BD.shape
    lengths_N = atoms_ND.norm(dim=1)
    units_ND = atoms_ND / lengths_N.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
    basis_BKD = targets_BD.new_zeros(batch, terms, width)
    factors_BKK = torch.eye(terms, device=targets_BD.device).repeat(batch, 1, 1)
    ids_BK = torch.zeros(batch, terms, dtype=torch.int64, device=targets_BD.device)
    residual_BD = targets_BD.clone()
    for step in range(terms):
        products_BN = (residual_BD @ units_ND.T).abs_().scatter_(1, ids_BK[:, :step], -1.0)
        ids_BK[:, step] = products_BN.argmax(dim=1)
        atom_BD = atoms_ND[ids_BK[:, step]]
        rest_BD, before_BK = _orthogonal(atom_BD, basis_BKD[:, :step])
        length_B = rest_BD.norm(dim=1)
        adds_B = length_B > _DEPENDENT * lengths_N[ids_BK[:, step]]
        basis_BKD[:, step] = torch.where(adds_B, 1 / length_B, 0.0).unsqueeze(1) * rest_BD
        factors_BKK[:, :step, step] = before_BK
        factors_BKK[:, step, step] = torch.where(adds_B, length_B, 1.0)
        residual_BD -= (residual_BD * basis_BKD[:, step]).sum(1, keepdim=True) * basis_BKD[:, step]
    shares_BK = torch.einsum("bkd,bd->bk", basis_BKD, targets_BD)
    return ids_BK, torch.linalg.solve_triangular(factors_BKK, shares_BK.unsqueeze(-1), upper=True).squeeze(-1)


def _orthogonal(atom_BD: Tensor, basis_BKD: Tensor) -> tuple[Tensor, Tensor]:
    """Return each atom's part outside the span of its basis, and its coefficients [B, K] in the basis.

    The projection is done twice, to reduce rounding errors.
    """
    rest_BD, shares_BK = atom_BD, atom_BD.new_zeros(basis_BKD.shape[:2])
    for _ in range(2):
        step_BK = torch.einsum("bkd,bd->bk", basis_BKD, rest_BD)
        rest_BD = rest_BD - torch.einsum("bkd,bk->bd", basis_BKD, step_BK)
        shares_BK = shares_BK + step_BK
    return rest_BD, shares_BK
