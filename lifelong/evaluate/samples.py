"""Continuations of held-out documents, to look at before and after a stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lifelong.lm.objective import objective_of
from lifelong.records import Sample
from lifelong.stream.heldout import Heldout

PROMPT_TOKENS = 16
NEW_TOKENS = 40


@torch.no_grad()
def sample_texts(
    model: Any, tokenizer: Any, heldouts: Sequence[Heldout], *, stage: int, objective: str, num_samples: int
) -> list[Sample]:
    """Greedy continuations of the opening of each domain's first held-out documents; none for masked models."""
    if not objective_of(objective).is_causal:
        return []
    training = model.training
    model.eval()
    positions = getattr(model.config, "max_position_embeddings", None) or PROMPT_TOKENS + NEW_TOKENS
    prompt_tokens = min(PROMPT_TOKENS, positions // 2)
    samples = []
    for heldout in heldouts:
        for index in range(min(num_samples, len(heldout))):
            ids = torch.as_tensor(heldout.ids(index)[:prompt_tokens].astype("int64"), device=model.device)[None]
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=min(NEW_TOKENS, positions - prompt_tokens),
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            )
            prompt = tokenizer.decode(ids[0], skip_special_tokens=True)
            text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
            samples.append(Sample(stage, heldout.domain, prompt, text))
    model.train(training)
    return samples
