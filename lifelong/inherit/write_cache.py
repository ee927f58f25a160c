"""`lifelong cache`: a teacher's targets on whole corpora, written once for many students and epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifelong.errors import InputError
from lifelong.inherit.cache import CacheSettings, CacheWriter, TargetCache, fill_cache
from lifelong.inherit.sparse import RandomSampling, Scheme, TauSampler, TopK, scheme_to_json
from lifelong.inherit.teachers._teacher import Batch
from lifelong.inherit.teachers.model import OnlineTeacher
from lifelong.ledger.ledger import model_of
from lifelong.lm.checkpoint import load_model, weights_fingerprint
from lifelong.lm.head import predicted_rows
from lifelong.lm.loss import OnlineTarget, default_chunk_tokens
from lifelong.lm.objective import OBJECTIVES, objective_of
from lifelong.lm.targets import project
from lifelong.stream.blocks import BlockStore
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.collator import Collator, PackedRow
from lifelong.stream.tokenize import tokenize_domain
from lifelong.stream.tokenizers.load import load_tokenizer, tokenizer_fingerprint

Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class CacheRequest:
    """Request for a cache: what to write.

    Args:
        model: checkpoint folder, hub id, or run folder (its last stage).
        cards: domains, by name or path of their cards.
        scheme: how distributions become few entries.
        temperature: tau of the loss that will use them.
        objective: clm or mlm.
        sequence_length: tokens of a block, as in the run that will use them.
        tokens: maximum per domain, in the order of the corpus; None: all.
        tokenizer: folder or hub id; None: the model's own.
        mask_seed: for mlm, of the masks.
        mask_patterns: for mlm, how many masks each block has.
        batch_tokens: tokens that the teacher sees at a time.
        device: where the teacher runs.
    """

    model: str
    cards: Sequence[str]
    scheme: Scheme
    temperature: float = 1.0
    objective: str = "clm"
    sequence_length: int = 256
    tokens: int | None = None
    tokenizer: str | None = None
    mask_seed: int = 0
    mask_patterns: int = 1
    batch_tokens: int = 8192
    device: str = "cpu"


@dataclass(frozen=True)
class CacheReport:
    """Figures of a written cache; bytes are those on disk, index and codebooks included."""

    folder: str
    blocks: int
    tokens: int
    num_bytes: int

    @property
    def bytes_per_token(self) -> float:
        """Bytes on disk per predicted token."""
        return self.num_bytes / max(1, self.tokens)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "folder": self.folder, "blocks": self.blocks, "tokens": self.tokens, "bytes": self.num_bytes,
            "bytes_per_token": self.bytes_per_token,
        }  # fmt: skip


def default_device() -> str:
    """An accelerator of CUDA where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_scheme(
    *, tau: float | None = None, top_k: int | None = None, draws: int | None = None, renormalise: bool = False
) -> Scheme:
    """The one scheme that is named; the tau-sampler with tau 1/20 where none is.

    Raises:
        InputError: more than one is named, or a setting that cannot be.
    """
    named = [name for name, value in (("--tau", tau), ("--top-k", top_k), ("--draws", draws)) if value is not None]
    if len(named) > 1:
        raise InputError(f"cache: name one of --tau, --top-k and --draws, not {' and '.join(named)}")
    if renormalise and top_k is None:
        raise InputError("cache: --renormalise belongs to --top-k; the sampled schemes are unbiased as they are")
    if top_k is not None:
        return TopK(top_k, renormalise)
    if draws is not None:
        return RandomSampling(draws)
    return TauSampler(1 / 20 if tau is None else tau)


def write_cache(request: CacheRequest, out: Path, progress: Progress = lambda *_: None) -> CacheReport:
    """Write a cache, or resume one of the same settings that was cut short.

    Args:
        request: what to write.
        out: its folder.
        progress: told of blocks and tokens that are done, and of all blocks.

    Raises:
        InputError: a model, card or setting that cannot be, or a folder that holds something else.
    """
    _check(request)
    source, _ = model_of(request.model)
    domains = [load_domain(card) for card in request.cards]
    tokenizer = _tokenizer(request, source, [domain.name for domain in domains])
    objective = objective_of(request.objective)
    collator = Collator.for_tokenizer(tokenizer, objective.name, request.sequence_length, request.mask_seed)
    model = load_model(source, objective.name)
    vocab_size = min(len(tokenizer), model.config.vocab_size)
    if model.config.vocab_size < len(tokenizer):
        raise InputError(
            f"cache: the model {request.model!r} has a vocabulary of {model.config.vocab_size} tokens, the tokenizer "
            f"{request.tokenizer or source!r} of {len(tokenizer)}; name the tokenizer that the model was trained with"
        )
    request.scheme.check(vocab_size)
    stores = {
        domain.name: tokenize_domain(domain, "train", tokenizer, sequence_length=request.sequence_length)
        for domain in domains
    }
    settings = CacheSettings(
        scheme=scheme_to_json(request.scheme),
        temperature=request.temperature,
        vocab_size=vocab_size,
        tokenizer=tokenizer_fingerprint(tokenizer),
        teacher=weights_fingerprint(model),
        objective=objective.name,
        sequence_length=request.sequence_length,
        mask_seed=request.mask_seed if objective.masks_tokens else 0,
        mask_patterns=request.mask_patterns if objective.masks_tokens else 0,
        corpora={name: store.fingerprint for name, store in stores.items()},
        tokens=request.tokens,
    )
    writer = CacheWriter(out, settings)
    if not writer.complete:
        patterns = request.mask_patterns if objective.masks_tokens else 1
        rows = [_Part(store, _num_blocks(store, request.tokens), patterns) for store in stores.values()]
        total = sum(part.num_rows for part in rows)
        teacher = OnlineTeacher(model.to(request.device), objective.name, vocab_size=vocab_size)
        with torch.inference_mode():
            fill_cache(
                writer,
                _batches(rows, collator, patterns if objective.masks_tokens else 0, request),
                lambda batch: block_probabilities(teacher, batch, request.temperature),
                lambda blocks, tokens: progress(blocks, tokens, total),
            )
    cache = TargetCache(out)
    return CacheReport(str(out), len(cache), cache.num_tokens, cache.num_bytes)


def block_probabilities(teacher: OnlineTeacher, batch: Batch, temperature: float) -> Iterator[Iterator[Tensor]]:
    """For each row of a batch, the teacher's probabilities at its predicted tokens, `[n, V]` float32 at a time."""
    (target,) = teacher.targets(batch)
    assert isinstance(target, OnlineTarget), "an online teacher has an online target"
    vocab = target.vocab_size or target.weight_VE.shape[0]
    weight_VE = target.weight_VE[:vocab].float()
    bias_V = None if target.bias_V is None else target.bias_V[:vocab].float()
    chunk = default_chunk_tokens(vocab, weight_VE.device)

    def of_row(hidden_NE: Tensor) -> Iterator[Tensor]:
        for part_CE in torch.split(hidden_NE, chunk):
            logits_CV = project(part_CE.float(), weight_VE, bias_V, target.softcap, target.logit_scale)
            yield logits_CV.div_(temperature).softmax(1)

    _, _, sequence_N = predicted_rows(batch["labels"][..., None], batch["labels"], teacher.objective)
    for row in range(batch["input_ids"].shape[0]):
        yield of_row(target.hidden_NE[sequence_N == row])


def _check(request: CacheRequest) -> None:
    if request.objective not in OBJECTIVES:
        raise InputError(f"cache --objective: clm or mlm, not {request.objective!r}")
    if not request.temperature > 0:
        raise InputError(f"cache --temperature: must be greater than 0, not {request.temperature:g}")
    for name, value, least in (
        ("--sequence-length", request.sequence_length, 8),
        ("--mask-patterns", request.mask_patterns, 1),
        ("--tokens", 1 if request.tokens is None else request.tokens, 1),
    ):
        if value < least:
            raise InputError(f"cache {name}: must be at least {least}, not {value}")
    if not request.cards:
        raise InputError("cache: name at least one --domain")


def _tokenizer(request: CacheRequest, source: str, domains: Sequence[str]) -> Any:
    """The one that is named, or the model's own for these domains."""
    if request.tokenizer is not None:
        return load_tokenizer(request.tokenizer)
    found = [load_tokenizer(source, domain) for domain in domains]
    if len({tokenizer_fingerprint(tokenizer) for tokenizer in found}) > 1:
        raise InputError(
            f"cache: the model {request.model!r} reads {', '.join(domains)} by tokenizers of their own; write one "
            "cache for each"
        )
    return found[0]


@dataclass(frozen=True)
class _Part:
    """The blocks of one domain, each as often as it has masks."""

    store: BlockStore
    num_blocks: int
    patterns: int

    @property
    def num_rows(self) -> int:
        return self.num_blocks * self.patterns


def _num_blocks(store: BlockStore, tokens: int | None) -> int:
    if tokens is None:
        return len(store)
    reached = store.lengths().cumsum()
    return min(len(store), int((reached < tokens).sum()) + 1)


def _batches(
    parts: Sequence[_Part], collator: Collator, mask_patterns: int, request: CacheRequest
) -> Iterator[Mapping[str, Tensor]]:
    """All rows in a fixed order: domain, block, mask."""
    collator = replace(collator, mask_patterns=mask_patterns)
    size = max(1, request.batch_tokens // request.sequence_length)
    pending: list[PackedRow] = []
    for part in parts:
        for number in range(part.num_blocks):
            block = part.store[number]
            for pattern in range(part.patterns):
                pending.append(PackedRow(block=block, domain_id=0, is_replay=False, mask_key=pattern))
                if len(pending) == size:
                    yield _on(collator(pending), request.device)
                    pending = []
    if pending:
        yield _on(collator(pending), request.device)


def _on(batch: Mapping[str, Tensor], device: str) -> Mapping[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}
