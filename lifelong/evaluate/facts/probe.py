"""Log-probability of the missing part of every fact.

Shape suffixes: F facts, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lifelong.evaluate.facts.injection import Fact
from lifelong.evaluate.probes import probe_steps
from lifelong.lm.head import predicted_nats
from lifelong.lm.loss import IGNORED
from lifelong.lm.objective import objective_of
from lifelong.stream.tokenizers.encoding import Encoder


class FactProbe:
    """Asks a model for every fact; call it with the model. Nats below zero: 0 is certainty.

    Args:
        facts: to ask for.
        tokenizer: of the run.
        objective: clm, or mlm: the target is hidden as a whole.
        pad_id: fills rows up.
        mask_id: for mlm.
    """

    def __init__(
        self, facts: Sequence[Fact], tokenizer: Any, objective: str, pad_id: int, mask_id: int | None = None
    ) -> None:
        self.objective = objective
        encoder = Encoder(tokenizer)
        rows = [
            (encoder.encode_for_scoring(fact.prompt), encoder.encode_for_scoring(f"{fact.prompt} {fact.target}"))
            for fact in facts
        ]
        length = max(len(whole) for _, whole in rows)
        ids_FT = np.full((len(rows), length), pad_id, dtype=np.int64)
        labels_FT, segments_FT = np.full_like(ids_FT, IGNORED), np.zeros_like(ids_FT)
        for f, (prompt, whole) in enumerate(rows):
            shared = _shared(prompt, whole)
            ids_FT[f, : len(whole)] = whole
            labels_FT[f, shared : len(whole)] = whole[shared:]
            segments_FT[f, : len(whole)] = 1
            if objective_of(objective).masks_tokens:
                assert mask_id is not None, "a masked model needs a mask token"
                ids_FT[f, shared : len(whole)] = mask_id
        self.batch = {
            "input_ids": torch.from_numpy(ids_FT),
            "labels": torch.from_numpy(labels_FT),
            "segment_ids": torch.from_numpy(segments_FT),
            "position_ids": torch.arange(length).expand(len(rows), length),
        }
        self.num_tokens = int(segments_FT.sum())

    def __call__(self, model: Any) -> list[float]:
        """Log-probability of each target, in nats."""
        device = next(model.parameters()).device
        training = model.training
        model.eval()
        nats_FT = predicted_nats(model, {k: v.to(device) for k, v in self.batch.items()}, self.objective)
        model.train(training)
        values: list[float] = (-nats_FT.double().sum(1)).cpu().tolist()
        return values


def _shared(prompt: np.ndarray[Any, Any], whole: np.ndarray[Any, Any]) -> int:
    """Tokens that the prompt alone and the sentence have in common: the target begins behind them."""
    length = min(len(prompt), len(whole) - 1)
    differs = np.flatnonzero(prompt[:length] != whole[:length])
    return int(differs[0]) if len(differs) else length


def fact_steps(injected_at: Sequence[int], num_steps: int, count: int) -> list[int]:
    """Probe steps of facts: at the start, before every injection and densely after it; on a log scale without any.

    Step n is the model after n optimizer steps; what is injected at step s has been learned from at s + 1.
    """
    steps = {0, *probe_steps(num_steps, count)}
    ends = [*injected_at[1:], num_steps][: len(injected_at)]
    for start, end in zip(injected_at, ends, strict=True):
        steps |= {start, *(start + step for step in probe_steps(max(1, end - start), count))}
    return sorted(steps)
