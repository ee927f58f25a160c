"""Held-out loss on one domain, defined so that it can be reproduced without this package.

Each document is tokenised alone with the beginning-of-text token in front (end-of-text where there is none) and
cut into windows of `sequence_length` tokens that overlap by one, so that every token is predicted exactly once
from the earlier tokens of its own window. A masked model predicts 15 % of the positions, chosen by a hash of
document and position and hidden by the mask token.

Shape suffixes: B windows, T tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lifelong import distributed
from lifelong.errors import InputError
from lifelong.lm.head import predicted_nats
from lifelong.lm.loss import IGNORED
from lifelong.lm.objective import objective_of
from lifelong.records import DomainLoss
from lifelong.stream.heldout import Heldout
from lifelong.stream.masking import evaluation_mask


@dataclass(frozen=True)
class Window:
    """Part of one document: what goes in, and what is predicted (-100 where nothing is)."""

    document: int
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]


def windows(ids: NDArray[np.integer], document: int, sequence_length: int) -> Iterator[Window]:
    """Causal windows of one document; every token but its first is predicted exactly once."""
    for start in range(0, max(len(ids) - 1, 1), sequence_length - 1):
        part = np.asarray(ids[start : start + sequence_length], dtype=np.int64)
        labels = part.copy()
        labels[0] = IGNORED
        yield Window(document, part, labels)


def masked_windows(
    ids: NDArray[np.integer], document: int, sequence_length: int, key: str, mask_id: int
) -> Iterator[Window]:
    """Windows of one document for a masked model; the token in front is never masked."""
    chosen = evaluation_mask(key, len(ids))
    chosen[0] = False
    for start in range(0, len(ids), sequence_length):
        part = np.asarray(ids[start : start + sequence_length], dtype=np.int64)
        hidden = chosen[start : start + sequence_length]
        yield Window(document, np.where(hidden, mask_id, part), np.where(hidden, part, IGNORED))


def document_windows(
    ids: NDArray[np.integer], document: int, sequence_length: int, *, objective: str, key: str, mask_id: int | None
) -> Iterator[Window]:
    """Windows of one document for a model of this objective; for mlm, `key` decides what `mask_id` hides."""
    if not objective_of(objective).masks_tokens:
        return windows(ids, document, sequence_length)
    assert mask_id is not None, "a masked model needs a mask token"
    return masked_windows(ids, document, sequence_length, key, mask_id)


def evaluate_domain(
    model: Any,
    heldout: Heldout,
    *,
    objective: str,
    sequence_length: int,
    pad_id: int,
    mask_id: int | None = None,
    batch_tokens: int = 8192,
    autocast: str | None = None,
) -> DomainLoss:
    """Held-out loss of one domain; sums in float64, no logits kept.

    The processes of a run share the batches; all of them have to come here, and get the same result.

    Args:
        model: any model with an output embedding; evaluated in evaluation mode, left in the mode it was in.
        heldout: the documents.
        objective: clm or mlm.
        sequence_length: T, tokens of a window.
        pad_id: fills a batch up; never attended to nor predicted.
        mask_id: for mlm, what hides a token.
        batch_tokens: tokens of a batch; windows of similar length go together.
        autocast: name of the dtype of products under autocast; None for the weights as they are.

    Raises:
        InputError: the held-out split predicts no token at all.
    """
    started = time.monotonic()
    parts: list[Window] = []
    for index in range(len(heldout)):
        parts += document_windows(
            heldout.ids(index), index, sequence_length, objective=objective, key=heldout.key(index), mask_id=mask_id
        )
    order = sorted(range(len(parts)), key=lambda number: (len(parts[number].ids), number))
    nats = np.zeros(len(parts))
    training = model.training
    model.eval()
    device = next(model.parameters()).device.type
    batches = list(window_batches(order, parts, batch_tokens))
    for place, counts in distributed.turns(len(batches)):
        batch = batches[place]
        with torch.autocast(device, getattr(torch, autocast)) if autocast else nullcontext():
            found = _window_nats(model, [parts[number] for number in batch], objective, pad_id)
        if counts:
            nats[batch] = found
    nats = distributed.summed(
        nats
    )  # every window was read by one process: the same sum, bit for bit, as by a single one
    model.train(training)
    document_nats, document_tokens = np.zeros(len(heldout)), np.zeros(len(heldout), dtype=np.int64)
    for window, value in zip(parts, nats, strict=True):  # in document order: the same sum for every batch size
        document_nats[window.document] += value
        document_tokens[window.document] += int((window.labels != IGNORED).sum())
    if document_tokens.sum() == 0:
        raise InputError(
            f"domain {heldout.domain!r}: its held-out split predicts no token; every document is too short"
        )
    return DomainLoss(
        domain=heldout.domain,
        nats=float(document_nats.sum()),
        tokens=int(document_tokens.sum()),
        bytes=sum(heldout.num_bytes(index) for index in range(len(heldout))),
        document_nats=tuple(document_nats.tolist()),
        document_tokens=tuple(document_tokens.tolist()),
        seconds=time.monotonic() - started,
    )


def estimated_loss(part: DomainLoss, *, whole: DomainLoss) -> DomainLoss | None:
    """The loss on all documents of a domain from that on its first ones and an earlier one on all.

    The difference of the two models on the documents that were read is added to what the earlier one had on all: the
    difference estimator of survey sampling. It is unbiased where the order of documents is random, and errs by what
    varies of the difference from document to document, which is little beside what varies of the loss.

    Args:
        part: of this model.
        whole: of an earlier model.

    Returns:
        Sums over all documents, with the per-document sums of those that were read; None where the two were not
        measured on the same documents.

    Source: Cochran 1977, Sampling Techniques, section 7.2 (a slope of one, given beforehand).
    """
    count = len(part.document_tokens)
    if part.document_tokens != whole.document_tokens[:count]:
        return None
    difference = (part.nats - sum(whole.document_nats[:count])) / part.tokens
    return replace(part, nats=whole.nats + difference * whole.tokens, tokens=whole.tokens, bytes=whole.bytes)


def window_batches(order: Sequence[int], parts: Sequence[Window], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of windows, in the given order, cut so that no batch holds more than `batch_tokens`, filling included."""
    batch: list[int] = []
    for number in order:
        if batch and (len(batch) + 1) * len(parts[number].ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _window_nats(model: Any, batch: Sequence[Window], objective: str, pad_id: int) -> NDArray[np.float64]:
    """Summed nats of each window."""
    nats_BT = predicted_nats(model, window_tensors(batch, pad_id, next(model.parameters()).device), objective)
    sums: NDArray[np.float64] = nats_BT.double().sum(1).cpu().numpy()
    return sums


def window_tensors(batch: Sequence[Window], pad_id: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Windows as the tensors that a packed row has, `[B, T]`; each one is a single segment."""
    length = max(len(window.ids) for window in batch)
    shape = (len(batch), length)
    ids_BT, labels_BT = np.full(shape, pad_id, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    segments_BT = np.zeros(shape, dtype=np.int64)
    for row, window in enumerate(batch):
        ids_BT[row, : len(window.ids)] = window.ids
        labels_BT[row, : len(window.ids)] = window.labels
        segments_BT[row, : len(window.ids)] = 1
    return {
        "input_ids": torch.from_numpy(ids_BT).to(device),
        "labels": torch.from_numpy(labels_BT).to(device),
        "segment_ids": torch.from_numpy(segments_BT).to(device),
        "position_ids": torch.arange(length, device=device).expand(len(batch), length),
    }
