"""Orthogonal matching pursuit: new tokens out of shared ones, as the model that they come from sees them.

Goddard and Neto 2025, "Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit" (arXiv 2506.06607;
mergekit's tokensurgeon): in the embedding of the donor, which knows the new tokens, each is approximated by K tokens
that both vocabularies have; the same coefficients, of the same tokens, make its row in the source's embedding. Unlike
there, tokens are chosen by their cosine with what is left to explain, as in the textbook's pursuit, and not by the
product, which prefers long vectors.

Shapes: B targets of a batch, N shared tokens, D the donor's width, K tokens a sum.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alm_pipeline.runtime.progress import track

_BATCH_PRODUCTS = 2**26
"""entries of a batch's matrix of products: 256 MB"""
_DEPENDENT = 1e-5
"""an atom whose part outside the span of those before it is this short adds nothing but rounding"""


def omp(targets_TD: Tensor, atoms_ND: Tensor, terms: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """[T, K] the atoms and [T, K] the coefficients that approximate each target; K is `terms`, or as many as there are.

    The coefficients are those of least squares over the chosen atoms.
    """
    terms = min(terms, *atoms_ND.shape)
    size = max(1, _BATCH_PRODUCTS // len(atoms_ND))
    found = []
    with track("orthogonal matching pursuit", len(targets_TD), "tokens") as advance:
        for batch_BD in targets_TD.float().split(size):
            found.append(_pursue(batch_BD, atoms_ND.float(), terms))
            advance(len(batch_BD))
    ids, coefficients = zip(*found, strict=True)
    return torch.cat(ids).cpu().numpy(), torch.cat(coefficients).double().cpu().numpy()


def _pursue(targets_BD: Tensor, atoms_ND: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    """[B, K] ids and coefficients, by Gram-Schmidt: `basis` spans the chosen atoms, `factors` is the triangle R."""
    batch, width = targets_BD.shape
    lengths_N = atoms_ND.norm(dim=1)
    units_ND = atoms_ND / lengths_N.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
    basis_BKD = targets_BD.new_zeros(batch, terms, width)
    factors_BKK = torch.eye(terms, device=targets_BD.device).repeat(batch, 1, 1)
    ids_BK = torch.zeros(batch, terms, dtype=torch.int64, device=targets_BD.device)
    left_BD = targets_BD.clone()
    for step in range(terms):
        products_BN = (left_BD @ units_ND.T).abs_().scatter_(1, ids_BK[:, :step], -1.0)
        ids_BK[:, step] = products_BN.argmax(dim=1)
        atom_BD = atoms_ND[ids_BK[:, step]]
        rest_BD, before_BK = _orthogonal(atom_BD, basis_BKD[:, :step])
        length_B = rest_BD.norm(dim=1)
        adds_B = length_B > _DEPENDENT * lengths_N[ids_BK[:, step]]
        basis_BKD[:, step] = torch.where(adds_B, 1 / length_B, 0.0).unsqueeze(1) * rest_BD
        factors_BKK[:, :step, step] = before_BK
        factors_BKK[:, step, step] = torch.where(adds_B, length_B, 1.0)
        left_BD -= (left_BD * basis_BKD[:, step]).sum(1, keepdim=True) * basis_BKD[:, step]
    shares_BK = torch.einsum("bkd,bd->bk", basis_BKD, targets_BD)
    return ids_BK, torch.linalg.solve_triangular(factors_BKK, shares_BK.unsqueeze(-1), upper=True).squeeze(-1)


def _orthogonal(atom_BD: Tensor, basis_BKD: Tensor) -> tuple[Tensor, Tensor]:
    """The part of each atom outside the span of its basis, and [B, K] its shares inside; twice, for rounding's sake."""
    rest_BD, shares_BK = atom_BD, atom_BD.new_zeros(basis_BKD.shape[:2])
    for _ in range(2):
        again_BK = torch.einsum("bkd,bd->bk", basis_BKD, rest_BD)
        rest_BD = rest_BD - torch.einsum("bkd,bk->bd", basis_BKD, again_BK)
        shares_BK = shares_BK + again_BK
    return rest_BD, shares_BK
