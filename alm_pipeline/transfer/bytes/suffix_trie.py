"""A vocabulary as a double-array trie of tokens spelled backwards, in which `modeling_ngram_bytes` looks up suffixes.

A step down the trie is one exact lookup, without hashes or collisions. Each state knows the longest token on the way
to it, so the answer is the state where a walk backwards from a byte ends. The places of the states are drawn at random:
states with many children come first, and all that do not collide are placed at once, until every state has a place.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alm_pipeline.transfer.bytes.modeling_ngram_bytes import BYTES, LONGEST

Ints = npt.NDArray[np.int64]
_ROUNDS = 500
"""draws for parents of similar size before the table is made larger"""


class SuffixTrie(NamedTuple):
    """The arrays of `modeling_ngram_bytes.Ngrams`."""

    bases: npt.NDArray[np.int32]
    parents: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32]


class _Nodes(NamedTuple):
    """Nodes in the order of their depth, the root first; E = nodes − 1 edges, one to each node but the root."""

    parents: Ints
    """[E] ascending"""
    letters: Ints
    """[E]"""
    tokens: npt.NDArray[np.int32]
    """[nodes] the longest token on the way to each node"""


def suffix_trie(spellings: Sequence[bytes]) -> SuffixTrie:
    """Return the trie of tokens 1, 2, … with these spellings: distinct, of 1 to LONGEST bytes."""
    if len(set(spellings)) < len(spellings) or not all(1 <= len(spelling) <= LONGEST for spelling in spellings):
        raise ValueError(f"spellings must be distinct, and have 1 to {LONGEST} bytes")
    nodes = _nodes(spellings)
    size = 2 * len(nodes.tokens) + BYTES
    bases = next(placed for factor in itertools.count(1) if (placed := _place(nodes, size * factor)) is not None)
    places = np.concatenate([[0], bases[nodes.parents] + nodes.letters])
    # any byte may be looked up from any state
    trie = SuffixTrie(*(np.full(bases.max() + BYTES, value, np.int32) for value in (0, -1, 0)))
    trie.bases[places] = bases
    trie.parents[places[1:]] = places[nodes.parents]
    trie.tokens[places] = nodes.tokens
    return trie


def _nodes(spellings: Sequence[bytes]) -> _Nodes:
    """Return the nodes: one for each distinct suffix of the spellings."""
    lengths = np.array([len(spelling) for spelling in spellings], np.int64)
    letters = np.frombuffer(b"".join(spelling[::-1].ljust(LONGEST, b"\0") for spelling in spellings), np.uint8)
    letters_KL, at = letters.reshape(-1, LONGEST).astype(np.int64), np.zeros(len(spellings), np.int64)
    parents, edges, tokens = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(1, np.int32)]
    count = 1
    for depth in range(LONGEST):
        longer = np.flatnonzero(lengths > depth)
        keys, node = np.unique(at[longer] * BYTES + letters_KL[longer, depth], return_inverse=True)
        at[longer] = count + node
        longest = np.concatenate(tokens)[keys // BYTES]
        ending = lengths[longer] == depth + 1
        longest[node[ending]] = longer[ending] + 1
        parents.append(keys // BYTES)
        edges.append(keys % BYTES)
        tokens.append(longest)
        count += len(keys)
    return _Nodes(np.concatenate(parents), np.concatenate(edges), np.concatenate(tokens))


def _place(nodes: _Nodes, size: int) -> Ints | None:
    """[nodes] each node's base: its child by a byte is at base + byte. Returns None if `size` places are too few."""
    generator, taken = np.random.default_rng(0), np.zeros(size + BYTES, np.bool_)
    taken[0] = True  # the root
    bases, children = np.zeros(len(nodes.tokens), np.int64), np.bincount(nodes.parents, minlength=len(nodes.tokens))
    kinds = np.ceil(np.log2(np.maximum(children, 1))).astype(np.int64)[nodes.parents]
    for kind in sorted(set(kinds.tolist()), reverse=True):
        edges = np.flatnonzero(kinds == kind)
        for _ in range(_ROUNDS):
            if not len(edges):
                break
            edges = edges[~_draw(nodes.parents[edges], nodes.letters[edges], bases, taken, generator)]
        if len(edges):
            return None
    return bases


def _draw(
    parents: Ints, letters: Ints, bases: Ints, taken: npt.NDArray[np.bool_], generator: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """[edges] whether the parent got the base drawn for it, that is, all places of its children were free."""
    starts = np.flatnonzero(np.diff(parents, prepend=-1))
    family = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(parents)))
    drawn = generator.integers(0, len(taken) - BYTES, len(starts))[family]
    places = drawn + letters
    claims = np.empty(len(taken), np.int64)
    claims[places] = family  # one of several claims remains
    fits = np.logical_and.reduceat((claims[places] == family) & ~taken[places], starts)[family]
    bases[parents[fits]] = drawn[fits]
    taken[places[fits]] = True
    return fits
