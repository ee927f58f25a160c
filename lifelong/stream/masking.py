"""Masks of masked language modelling: in training a function of (seed, epoch, row), in evaluation of the document.

Source: Devlin et al. 2019, BERT, section 3.1: of the chosen 15 %, 80 % become the mask token, 10 % a random
token, 10 % stay.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lifelong.lm.objective import MASK_RATE
from lifelong.stream.ordering import key_of, uniforms

_MASKED_SHARE = 0.8
_RANDOM_SHARE = 0.1


def training_mask(
    ids: NDArray[np.integer],
    key: int,
    *,
    mask_id: int,
    ordinary_ids: NDArray[np.integer],
    protected: NDArray[np.bool_],
    rate: float = MASK_RATE,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Masked ids that the model sees, and the positions that it has to predict.

    Args:
        ids: tokens of a row [T].
        key: of (seed, epoch, row); equal keys give equal masks.
        mask_id: the mask token.
        ordinary_ids: the tokens that a random replacement is drawn from.
        protected: positions that are never chosen [T]: special tokens, padding.
        rate: share of the other positions that is chosen.

    Returns:
        The ids after replacement [T], and the chosen positions [T].
    """
    length = len(ids)
    chosen = (uniforms(key_of(key, "chosen"), length) < rate) & ~protected
    kind = uniforms(key_of(key, "kind"), length)
    drawn = (uniforms(key_of(key, "token"), length) * len(ordinary_ids)).astype(np.int64)
    replaced = ids.astype(np.int64)
    replaced[chosen & (kind < _MASKED_SHARE)] = mask_id
    at_random = chosen & (kind >= _MASKED_SHARE) & (kind < _MASKED_SHARE + _RANDOM_SHARE)
    replaced[at_random] = ordinary_ids[drawn[at_random]]
    return replaced, chosen


def evaluation_mask(document_key: str, length: int, rate: float = MASK_RATE) -> NDArray[np.bool_]:
    """The positions of a held-out document that are predicted [length]: always the same ones.

    Position 0 holds the token put in front of the document and is never chosen. Every chosen position
    shows the mask token: no random tokens, so that the loss has no noise of its own.
    """
    chosen = uniforms(key_of("evaluation", document_key), length) < rate
    chosen[:1] = False
    return chosen
