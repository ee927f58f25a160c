"""Selection scores of documents, from losses measured elsewhere.

Losses are computed elsewhere (they need models); here they become scores, and scores a choice of rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lifelong.errors import InputError
from lifelong.stream.ordering import key_of, uniforms

FloatArray = NDArray[np.floating]


def difference_scores(
    teacher_nats: FloatArray, reference_nats: FloatArray, sizes: NDArray[np.integer] | None = None
) -> NDArray[np.float64]:
    """Difference score: how much better the teacher predicts each text than a small reference model [N].

    High: knowledge that takes a large model. Near 0: what both know (common), or neither (noise). Only sums
    over whole texts are compared, so teacher and reference may have different tokenizers; with `sizes` in
    bytes texts of different length compare too.

    Args:
        teacher_nats: negative log-likelihood of each text under the teacher [N].
        reference_nats: the same under the reference [N].
        sizes: UTF-8 bytes of each text [N]; equal if absent.

    Raises:
        InputError: the arrays differ in length, or hold no finite numbers.

    Source: Gu et al. 2024, MiniPLM, arXiv 2410.17215, section 2.2: log p_teacher(x) - log p_reference(x).
    """
    teacher, reference = _checked("teacher_nats", teacher_nats), _checked("reference_nats", reference_nats)
    weights = np.ones(len(teacher)) if sizes is None else _checked("sizes", np.asarray(sizes, dtype=np.float64))
    if not len(teacher) == len(reference) == len(weights):
        raise InputError(
            f"difference sampling: {len(teacher)} teacher losses, {len(reference)} reference losses, "
            f"{len(weights)} sizes; one of each per text is needed"
        )
    return (reference - teacher) / np.maximum(weights, 1.0)


def challenge_scores(
    token_nats: Sequence[FloatArray], token_ranks: Sequence[NDArray[np.integer]], *, top_k: int = 10
) -> NDArray[np.float64]:
    """Challenging-yet-learnable score of each text for a small model: the median of its capped losses [N].

    A token counts with its loss only if the model has it among its `top_k` guesses, else with 0: what is far
    from all guesses is noise rather than a lesson.

    Args:
        token_nats: losses of the predicted tokens of each text.
        token_ranks: rank of the right token among the model's guesses, 0 for the best, in the same shapes.
        top_k: how many guesses count as learnable.

    Raises:
        InputError: the shapes differ.

    Source: Rawat et al. 2024, SALT, arXiv 2410.18779, section 4.3.
    """
    if [len(row) for row in token_nats] != [len(row) for row in token_ranks]:
        raise InputError("challenging yet learnable: every token needs one loss and one rank")
    capped = (
        np.where(np.asarray(ranks) < top_k, _checked("token_nats", nats), 0.0)
        for nats, ranks in zip(token_nats, token_ranks, strict=True)
    )
    return np.array([float(np.median(row)) if len(row) else 0.0 for row in capped], dtype=np.float64)


def select_rows(
    scores: FloatArray,
    keep: float,
    *,
    sizes: NDArray[np.integer] | None = None,
    seed: int = 0,
    temperature: float = 0.0,
) -> NDArray[np.int64]:
    """The rows with the highest scores, ascending, until they make up `keep` of the whole.

    Args:
        scores: one number a row [N].
        keep: share of the rows, or of `sizes` where given, in (0, 1].
        sizes: tokens of each row [N].
        seed: of ties and of the draw.
        temperature: 0 takes the best; above it rows are drawn without replacement with probability
            proportional to exp(score / temperature) (Gumbel top-k, Kool et al. 2019, arXiv 1903.06059).

    Raises:
        InputError: `keep` is not a share.
    """
    if not 0.0 < keep <= 1.0:
        raise InputError(f"select.keep: {keep!r} is not in (0, 1]")
    values = _checked("scores", scores)
    chance = np.clip(uniforms(key_of(seed, "selection"), len(values)), 1e-300, None)
    if temperature > 0:
        values = values / temperature - np.log(-np.log(chance))
    order = np.lexsort((chance, -values))
    weights = np.ones(len(values)) if sizes is None else np.asarray(sizes, dtype=np.float64)
    reached = np.cumsum(weights[order])
    # the row that crosses the mark is kept: never fewer than asked for, at least one
    count = int(np.searchsorted(reached, keep * weights.sum() * (1 - 1e-12))) + 1
    return np.sort(order[:count])


def _checked(name: str, values: FloatArray) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if not np.all(np.isfinite(array)):
        raise InputError(f"{name}: {int((~np.isfinite(array)).sum())} of {array.size} values are not finite")
    return array
