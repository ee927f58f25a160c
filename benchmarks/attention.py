"""Attention of packed rows: one call per document beside PyTorch's with a mask, forward and backward.

Documents have random lengths (geometric); the shape of a head is SmolLM2's. Forms take turns in one process, in
processor seconds of one thread; a ratio is the median of those within a turn.

    python -m benchmarks.attention [--tokens 256 512 1024 2048] [--mean 170] [--rounds 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lifelong.lm.attention import attend_by_document, document_mask

CAUSAL = "causal, one document"
HEADS, KEY_HEADS, WIDTH = 9, 3, 64
BATCH_TOKENS = 8192


class Layer(nn.Module):
    """What an attention function asks its module for."""

    is_causal = True
    num_key_value_groups = HEADS // KEY_HEADS


def segments(rows: int, tokens: int, mean: float, generator: torch.Generator) -> Tensor:
    """Numbers of documents `[B, T]`."""
    begins = torch.rand(rows, tokens, generator=generator) < 1 / mean
    return begins.long().cumsum(1) + 1


def compared(tokens: int, mean: float, rounds: int) -> dict[str, object]:
    """Ratios at one length."""
    generator = torch.Generator().manual_seed(tokens)
    rows = max(1, BATCH_TOKENS // tokens)
    segment_ids = segments(rows, tokens, mean, generator)
    query, key, value = (
        torch.randn(rows, heads, tokens, WIDTH, generator=generator, requires_grad=True)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    layer, documents = Layer(), document_mask(segment_ids)
    lower = torch.ones(tokens, tokens, dtype=torch.bool).tril()

    def masked() -> Tensor:
        seen = (segment_ids[:, None, :, None] == segment_ids[:, None, None, :]) & lower
        return sdpa_attention_forward(layer, query, key, value, seen)[0]

    forms: dict[str, Callable[[], Tensor]] = {
        "mask": masked,
        "by document": lambda: attend_by_document(layer, query, key, value, documents)[0],
        CAUSAL: lambda: sdpa_attention_forward(layer, query, key, value, None)[0],
    }
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds + 1):
        for name, form in forms.items():
            started = time.process_time()
            form().sum().backward()
            taken[name].append(time.process_time() - started)
    ratios = [one / two for one, two in zip(taken["by document"][1:], taken["mask"][1:], strict=True)]
    return {
        "tokens": tokens,
        "visible": float((segment_ids[:, :, None] == segment_ids[:, None]).float().mean()),
        "by document / mask": [round(found, 3) for found in (statistics.median(ratios), min(ratios), max(ratios))],
        "one document / mask": round(statistics.median(taken[CAUSAL]) / statistics.median(taken["mask"]), 3),
    }  # fmt: skip


def main() -> None:
    """Print one JSON line a length: the ratio as median, lowest and highest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", nargs="*", type=int, default=[256, 512, 1024, 2048])
    parser.add_argument("--mean", type=float, default=170.0, help="tokens of a document")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for tokens in given.tokens:
        print(json.dumps(compared(tokens, given.mean, given.rounds)), flush=True)


if __name__ == "__main__":
    main()
