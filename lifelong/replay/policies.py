"""Storage policies of a replay memory.

A policy is two decisions: in which order the blocks of a stage are kept, and how the capacity is divided
among the stages.

| policy | order within a stage | division |
|---|---|---|
| reservoir | random | none: every block ever seen is kept with the same probability |
| experience-balanced | random | equal tokens per stage |
| domain-balanced | random | equal tokens per domain, however many stages it had |
| loss-ranked | highest score first | equal tokens per stage |
| diverse | farthest first in token counts | equal tokens per stage |

What a small share leaves over goes to the others. A random order is a sort by hash, and keeping the smallest
hashes of everything seen is an exact uniform sample (bottom-k sampling), the same in distribution as a
reservoir (Vitter 1985) but without a state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lifelong.errors import InputError, UnknownNameError
from lifelong.stream.blocks import StoredBlocks
from lifelong.stream.ordering import key_of, uniforms

POLICIES = ("reservoir", "experience-balanced", "domain-balanced", "loss-ranked", "diverse")
_BUCKETS = 512
_CANDIDATES_PER_PLACE = 8
_FEWEST_CANDIDATES, _MOST_CANDIDATES = 2048, 8192


def canonical_policy(policy: str) -> str:
    """The policy's name; `_` and `-` are the same.

    Raises:
        UnknownNameError: offers the nearest.
    """
    name = policy.replace("_", "-")
    if name not in POLICIES:
        raise UnknownNameError("memory policy", policy, POLICIES, "replay.policy")
    return name


def priorities_of(
    policy: str,
    blocks: StoredBlocks,
    limit: int,
    *,
    seed: int,
    stage: int,
    scores: NDArray[np.floating] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The first `limit` rows of a stage in the order they are kept, with ascending priorities.

    Short blocks, as one at the end of a text is, come last, so that a memory is made of full ones.

    Raises:
        InputError: loss-ranked without one score a block.
    """
    policy = canonical_policy(policy)
    length = len(blocks)
    priorities = uniforms(key_of(seed, "memory", stage), length)
    if policy == "loss-ranked":
        if scores is None or len(scores) != length:
            raise InputError(
                f"memory policy loss-ranked needs one score for each of the {length} blocks, "
                f"got {0 if scores is None else len(scores)}"
            )
        priorities = -np.asarray(scores, dtype=np.float64)
    elif policy == "diverse":
        priorities = _farthest_first(blocks, priorities, limit)
    tokens = blocks.lengths()
    priorities[tokens < tokens.max(initial=0)] = np.inf
    order = np.argsort(priorities, kind="stable")[:limit]
    return order, np.where(np.isinf(priorities[order]), np.finfo(np.float64).max, priorities[order])


def quotas_of(
    policy: str,
    experiences: Sequence[tuple[str, Sequence[float]]],
    lengths: Sequence[NDArray[np.int64]],
    capacity_tokens: int,
) -> list[int]:
    """Number of blocks of each experience that stay, from the beginning of its order.

    Args:
        policy: decides the division.
        experiences: domain and ascending priorities of each.
        lengths: tokens of the blocks of each, in the same order.
        capacity_tokens: bound on the sum.
    """
    policy = canonical_policy(policy)
    if policy == "reservoir":
        return _smallest_overall([priorities for _, priorities in experiences], lengths, capacity_tokens)
    available = [int(tokens.sum()) for tokens in lengths]
    if policy == "domain-balanced":
        names = list(dict.fromkeys(domain for domain, _ in experiences))
        members = [[i for i, (domain, _) in enumerate(experiences) if domain == name] for name in names]
        shares = fair_shares([sum(available[i] for i in group) for group in members], capacity_tokens)
        counts = [0] * len(experiences)
        for group, share in zip(members, shares, strict=True):
            priorities = [experiences[i][1] for i in group]
            for i, count in zip(group, _smallest_overall(priorities, [lengths[i] for i in group], share), strict=True):
                counts[i] = count
        return counts
    shares = fair_shares(available, capacity_tokens)
    return [_fitting(tokens, share) for tokens, share in zip(lengths, shares, strict=True)]


def fair_shares(available: Sequence[int], capacity: int) -> list[int]:
    """Equal shares of a capacity, where nobody gets more than is available and nothing is left over."""
    shares = [0] * len(available)
    left = capacity
    order = sorted(range(len(available)), key=lambda i: available[i])
    for position, i in enumerate(order):
        shares[i] = min(available[i], left // (len(order) - position))
        left -= shares[i]
    return shares


def _fitting(tokens: NDArray[np.int64], share: int) -> int:
    return int(np.searchsorted(np.cumsum(tokens), share, side="right"))


def _smallest_overall(
    priorities: Sequence[Sequence[float]], lengths: Sequence[NDArray[np.int64]], capacity: int
) -> list[int]:
    owner = np.repeat(np.arange(len(priorities)), [len(values) for values in priorities])
    merged = np.concatenate([np.asarray(values, dtype=np.float64) for values in priorities])
    order = np.argsort(merged, kind="stable")
    kept = owner[order][: _fitting(np.concatenate(lengths)[order], capacity)]
    return [int(count) for count in np.bincount(kept, minlength=len(priorities))]


def _farthest_first(blocks: StoredBlocks, chance: NDArray[np.float64], limit: int) -> NDArray[np.float64]:
    """Rank in a farthest-first traversal of random candidates, in counts of hashed tokens.

    Source: Gonzalez 1985; used as k-center for coresets by Sener and Savarese 2018, arXiv 1708.00489.
    """
    wanted = min(limit, len(blocks))
    considered = min(_MOST_CANDIDATES, max(_FEWEST_CANDIDATES, _CANDIDATES_PER_PLACE * wanted))
    candidates = np.argsort(chance, kind="stable")[:considered]
    features = np.stack([_token_counts(blocks[int(row)].ids) for row in candidates])
    seen_in = (features > 0).mean(axis=0)
    features *= np.log1p(1.0 / np.maximum(seen_in, 1e-9)) * (seen_in > 0)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    # candidates are in random order, so the first one is a random start
    nearest = np.full(len(candidates), np.inf)
    ranks = np.full(len(blocks), np.inf)
    current = 0
    for rank in range(min(wanted, len(candidates))):
        ranks[candidates[current]] = rank
        nearest = np.minimum(nearest, 1.0 - features @ features[current])
        nearest[current] = -np.inf
        current = int(np.argmax(nearest))
    left = np.isinf(ranks)
    ranks[left] = len(blocks) + chance[left]
    return ranks


def _token_counts(ids: NDArray[np.int32]) -> NDArray[np.float64]:
    buckets = (ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - 9)
    return np.sqrt(np.bincount(buckets.astype(np.int64), minlength=_BUCKETS).astype(np.float64))
