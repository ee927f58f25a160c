"""The KI loss against plain forms of the common alternatives: peak memory and time of the head; the cache of targets.

The alternatives are written here from their description, in plain PyTorch, each in a few lines; they are not the
packages themselves. Forms take turns in one process; times are medians, ratios are medians of the ratios of each
round, so that load from elsewhere falls on all of them. Memory is the rise of the resident set (Linux) or of the
allocator's peak (CUDA) over what was there before, gradients of hidden states and embedding included.

    python benchmarks/inherit.py [--tokens 4096] [--width 512] [--vocab 50257] [--rounds 5] [--part NAME]
    python benchmarks/inherit.py --clock cpu     # on a machine whose cores others use: seconds of this process alone
    python benchmarks/inherit.py --device cuda --dtype bfloat16 --vocab 128256 --tokens 16384 --width 2048
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lifelong.inherit import CachedTarget, OnlineTarget, ki_loss
from lifelong.inherit.cache import CacheSettings, CacheWriter, TargetCache, block_keys, fill_cache
from lifelong.inherit.sparse import RandomSampling, TauSampler, TopK, scheme_to_json

ALPHA = 0.5
clock = time.perf_counter
Form = Callable[[], Tensor]


# --- the alternatives -------------------------------------------------------------------------------------------


def lm_full(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """What transformers does: all logits, raised to float32, cross-entropy."""
    return F.cross_entropy((hidden @ weight.T).float(), labels)


class ChunkedHead(torch.autograd.Function):
    """A cross-entropy head whose gradient is computed chunk by chunk in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, rows: int) -> Tensor:
        """Loss; the gradients are kept."""
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        loss = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(hidden), rows):
            part, label = hidden[start : start + rows], labels[start : start + rows]
            logits = (part @ weight.T).float()
            log_probabilities = logits.log_softmax(1)
            loss -= log_probabilities.gather(1, label[:, None]).sum()
            grad = log_probabilities.exp_()
            grad.scatter_add_(1, label[:, None], grad.new_full((len(label), 1), -1.0))
            grad = (grad / len(hidden)).to(hidden.dtype)
            grad_hidden[start : start + rows] = grad @ weight
            grad_weight += grad.T @ part
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return loss / len(hidden)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """What was kept, scaled."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * upstream[0], grad_weight * upstream[0], None, None


def _mixed_loss(logits: Tensor, teacher: Tensor, labels: Tensor, tau: float, reduction: str = "sum") -> Tensor:
    ce = F.cross_entropy(logits.float(), labels, reduction=reduction)
    kl = F.kl_div(
        (logits.float() / tau).log_softmax(1), (teacher.float() / tau).log_softmax(1), reduction="sum", log_target=True
    )
    return (1 - ALPHA) * ce + ALPHA * tau**2 * kl


def ki_full(hidden: Tensor, weight: Tensor, labels: Tensor, t_hidden: Tensor, t_weight: Tensor, tau: float) -> Tensor:
    """Both `[N, V]` logits whole."""
    with torch.no_grad():
        teacher = t_hidden @ t_weight.T
    return _mixed_loss(hidden @ weight.T, teacher, labels, tau) / len(labels)


def ki_chunked_autograd(
    hidden: Tensor, weight: Tensor, labels: Tensor, t_hidden: Tensor, t_weight: Tensor, tau: float, recompute: bool
) -> Tensor:
    """Chunks of 256 rows under autograd: every chunk's softmax is kept for backward, or computed again there."""

    def part(h: Tensor, w: Tensor, y: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = t @ t_weight.T
        return _mixed_loss(h @ w.T, teacher, y, tau)

    total = hidden.new_zeros((), dtype=torch.float32)
    for rows in torch.arange(len(labels), device=labels.device).split(256):
        inputs = (hidden[rows], weight, labels[rows], t_hidden[rows])
        total = total + (checkpoint(part, *inputs, use_reentrant=False) if recompute else part(*inputs))
    return total / len(labels)


def subset_kl(hidden: Tensor, weight: Tensor, labels: Tensor, ids: Tensor, probabilities: Tensor) -> Tensor:
    """A cache under autograd: all student logits, log-softmax, KL over the K gathered entries."""
    log_probabilities = (hidden @ weight.T).float().log_softmax(1)
    ce = -log_probabilities.gather(1, labels[:, None]).sum()
    kl = -(probabilities * log_probabilities.gather(1, ids)).sum()
    return ((1 - ALPHA) * ce + ALPHA * kl) / len(labels)


# --- measuring --------------------------------------------------------------------------------------------------


class Peak:
    """Rise of memory in MB over what was there on entry."""

    def __init__(self, device: str) -> None:
        self.device, self.megabytes = device, 0.0

    def __enter__(self) -> Peak:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            self.before = resident("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        after = torch.cuda.max_memory_allocated() if self.device == "cuda" else resident("VmHWM")
        self.megabytes = (after - self.before) / 1e6


def resident(field: str) -> int:
    """Bytes from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def take_turns(
    forms: dict[str, Callable[[], Any]], rounds: int, device: str, before: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds of every form in every round, forward and backward; the first round is thrown away."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + 1):
        for name, form in forms.items():
            before()
            if device == "cuda":
                torch.cuda.synchronize()
            started = clock()
            form().backward()
            if device == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[name].append(clock() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, base: str) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def head_forms(options: argparse.Namespace) -> tuple[dict[str, Form], Callable[[int], None]]:
    """Loss heads on random hidden states, and what sets the number of tokens."""
    device, dtype = options.device, getattr(torch, options.dtype)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(device, dtype)

    n, d, v = options.tokens, options.width, options.vocab
    weight, t_weight = draw(v, d, scale=2.0 * d**-0.5).requires_grad_(), draw(v, d, scale=2.0 * d**-0.5)
    full = {
        "hidden": draw(n, d), "t_hidden": draw(n, d),
        "labels": torch.randint(0, v, (n,), generator=generator).to(device),
        "ids": torch.stack([torch.randperm(v, generator=generator)[:64] for _ in range(n)]).to(device),
        "probabilities": torch.rand(n, 64, generator=generator).softmax(1).to(device),
    }  # fmt: skip
    x: dict[str, Tensor] = {}

    def use(tokens: int) -> None:
        for name, tensor in full.items():
            x[name] = tensor[:tokens].clone()
        x["hidden"].requires_grad_()
        x["weight"] = weight
        weight.grad = None

    def plain() -> tuple[Tensor, Tensor, Tensor]:
        return x["hidden"], x["weight"], x["labels"]

    def ours(tau: float) -> Form:
        return lambda: ki_loss(*plain(), targets=OnlineTarget(x["t_hidden"], t_weight), alpha=ALPHA, temperature=tau)

    def cached(k: int) -> Form:
        return lambda: ki_loss(*plain(), targets=CachedTarget(x["ids"][:, :k], x["probabilities"][:, :k]), alpha=ALPHA)

    def teacher() -> tuple[Tensor, Tensor]:
        return x["t_hidden"], t_weight

    forms: dict[str, Form] = {
        "LM, chunked head": lambda: ChunkedHead.apply(*plain(), max(64, (15 << 19) // v)),
        "LM, all logits": lambda: lm_full(*plain()),
        "LM, ours": lambda: ki_loss(*plain()),
        "KI online, ours, tau 1": ours(1.0),
        "KI online, ours, tau 2": ours(2.0),
        "KI cached, ours, K 12": cached(12),
        "KI cached, ours, K 64": cached(64),
        "KI online, all logits": lambda: ki_full(*plain(), *teacher(), 2.0),
        "KI online, chunks under autograd": lambda: ki_chunked_autograd(*plain(), *teacher(), 2.0, recompute=False),
        "KI online, chunks recomputed": lambda: ki_chunked_autograd(*plain(), *teacher(), 2.0, recompute=True),
        "KI cached, gathered from all logits": lambda: subset_kl(*plain(), x["ids"], x["probabilities"]),
    }
    return {name: form for name, form in forms.items() if options.only in name}, use


def bench_head(options: argparse.Namespace) -> dict[str, Any]:
    """Memory at N tokens, time at a quarter of them."""
    forms, use = head_forms(options)
    use(options.tokens // 4)
    hidden_like = options.tokens // 4
    seconds = take_turns(forms, options.rounds, options.device, lambda: use(hidden_like)) if options.rounds else {}
    rows = {}
    base = next(iter(forms))
    for name, form in forms.items():
        megabytes = []
        for tokens in (options.tokens // 2, options.tokens):
            use(tokens)
            with Peak(options.device) as peak:
                form().backward()
            megabytes.append(peak.megabytes)
        rows[name] = {
            "milliseconds": statistics.median(seconds[name]) * 1e3 if seconds else math.nan,
            "ratio": ratio(seconds, name, base) if seconds else math.nan,
            "megabytes": megabytes[1],
            "bytes_per_token": (megabytes[1] - megabytes[0]) * 1e6 / (options.tokens - options.tokens // 2),
        }
        print(
            f"{name:38} {rows[name]['milliseconds']:9.1f} ms {rows[name]['ratio']:6.2f}x "
            f"{rows[name]['megabytes']:8.0f} MB {rows[name]['bytes_per_token']:9.0f} B/token",
            flush=True,
        )
    return rows


# --- the cache --------------------------------------------------------------------------------------------------


def like_a_language_model(rows: int, vocab: int, spread: float, generator: torch.Generator) -> Tensor:
    """Distributions over a vocabulary of Zipf frequencies, each with its own noise and its own sharpness."""
    unigram = -1.05 * torch.log(torch.arange(1, vocab + 1) + 2.7)
    sharpness = 0.5 + torch.rand(rows, 1, generator=generator)
    return (unigram + spread * sharpness * torch.randn(rows, vocab, generator=generator)).softmax(1)


def bench_cache(options: argparse.Namespace) -> dict[str, Any]:
    """Bytes on disk, seconds to write and to read, and the error of the target, for each scheme."""
    generator = torch.Generator().manual_seed(0)
    blocks, length = 16, 128
    labels = torch.randint(0, options.vocab, (blocks, length + 1), generator=generator)
    labels[:, 0] = -100
    batch = {
        "input_ids": labels.clamp(min=0), "labels": labels, "segment_ids": torch.ones_like(labels),
        "position_ids": torch.arange(length + 1).repeat(blocks, 1),
    }  # fmt: skip
    said = [like_a_language_model(length, options.vocab, options.spread, generator) for _ in range(blocks)]
    entropy = float(torch.stack([-(torch.xlogy(p, p)).sum(1).mean() for p in said]).mean() / math.log(2))
    print(f"cache: vocabulary {options.vocab}, mean entropy {entropy:.2f} bits")
    schemes = {
        "tau 1/20": TauSampler(1 / 20), "tau 1/50": TauSampler(1 / 50), "top-12": TopK(12), "top-64": TopK(64),
        "50 draws": RandomSampling(50),
    }  # fmt: skip
    rows: dict[str, Any] = {"entropy_bits": entropy}
    for name, scheme in schemes.items():
        settings = CacheSettings(scheme_to_json(scheme), 1.0, options.vocab, "t", "m", "clm", length + 1)
        with tempfile.TemporaryDirectory() as folder:
            started = clock()
            fill_cache(CacheWriter(Path(folder) / "c", settings), [batch], lambda _: (iter([p]) for p in said))
            writing = clock() - started
            cache = TargetCache(Path(folder) / "c")
            size = sum(path.stat().st_size for path in (Path(folder) / "c").rglob("*.arrow"))
            book = 2 * len(cache._shards[0].book.tokens)
            keys, reading = block_keys(batch), []
            for number in range(30):
                order = torch.randperm(blocks, generator=torch.Generator().manual_seed(number)).tolist()
                started = clock()
                ids, _, _ = cache.read([keys[i] for i in order])
                reading.append(clock() - started)
        error, bias = target_error(scheme, said[0], options.draws)
        tokens = blocks * length
        rows[name] = {
            "entries": float((ids >= 0).sum() / tokens), "bytes_per_token": (size - book) / tokens,
            "codebook_bytes": book, "million_tokens_per_second": tokens / min(reading) / 1e6,
            "read_median": tokens / statistics.median(reading) / 1e6,
            "microseconds_to_write_a_token": writing / tokens * 1e6, "squared_error": error,
            "largest_bias_sigmas": bias,
        }  # fmt: skip
        row = rows[name]
        print(
            f"{name:9} {row['entries']:5.1f} entries {row['bytes_per_token']:6.1f} B/token and {book:,} B a shard, "
            f"read {row['million_tokens_per_second']:.2f} M tokens/s (median {row['read_median']:.2f}), "
            f"written {row['microseconds_to_write_a_token']:.0f} us/token, squared error {error:.1e}, "
            + ("biased" if bias is None else f"|bias| {bias:.1f} sigma"),
            flush=True,
        )
    return rows


def target_error(scheme: Any, said: Tensor, draws: int) -> tuple[float, float | None]:
    """Mean squared L2 error of one draw; largest |mean - p| in sigmas of the scheme's own variance where p > 1e-3."""
    p, copies = said[:8], 20
    exact = p.double().numpy()
    rng = np.random.default_rng(1)
    total, squares = np.zeros(p.shape), 0.0
    for _ in range(max(1, draws // copies)):
        rows = scheme.sparsify(p.repeat(copies, 1), rng)
        values = np.full(len(rows.ids), scheme.unit)
        values[rows.coded] = scheme.values(rows.codes)
        owner = np.repeat(np.arange(copies * len(p)), rows.counts) % len(p)
        np.add.at(total, (owner, rows.ids), values)
        was = exact[owner, rows.ids]
        squares += float(((values - was) ** 2 - was**2).sum()) + copies * float((exact**2).sum())
    number = copies * max(1, draws // copies)
    if isinstance(scheme, TauSampler):
        code = (exact - scheme.tau) / (1 - scheme.tau) * 255 % 1
        rounding = code * (1 - code) * ((1 - scheme.tau) / 255) ** 2
        variance = np.where(exact >= scheme.tau, rounding, exact * np.clip(scheme.tau - exact, 0, None))
    elif isinstance(scheme, RandomSampling):
        variance = exact * (1 - exact) / scheme.draws
    else:
        return squares / number / len(p), None
    sigmas = np.abs(total / number - exact) / np.sqrt(variance / number + 1e-14)
    return squares / number / len(p), float(sigmas[exact > 1e-3].max())


def main() -> None:
    global clock  # noqa: PLW0603 - one clock for all parts
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--rounds", type=int, default=5, help="of the timing of heads; 0: memory alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--spread", type=float, default=5.0, help="of the logits of a synthetic teacher")
    parser.add_argument("--draws", type=int, default=2000, help="of the check for bias")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="cpu: of this process, one thread")
    parser.add_argument("--part", default="all", choices=["head", "cache", "all"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/inherit.json"))
    options = parser.parse_args()
    if options.clock == "cpu":
        torch.set_num_threads(1)
        clock = time.process_time
    result: dict[str, Any] = {"options": {k: str(v) for k, v in vars(options).items()}}
    if options.part in ("head", "all"):
        result["head"] = bench_head(options)
    if options.part in ("cache", "all"):
        result["cache"] = bench_cache(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
