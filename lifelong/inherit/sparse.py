"""Sparse targets instead of a whole distribution: top-K, random sampling, and the tau-sampler.

Shape suffixes: C rows, V vocabulary, M entries of all rows together, R hits.

An entry carries a code for its probability, or none: then its probability is the scheme's `unit`. The
random schemes are unbiased: the expectation of the sparse target is the distribution, rounding included.

Sources: top-K with and without renormalisation: Qin et al. 2022 (arXiv 2105.13880), section 4.2; random sampling:
Anshumann et al. 2025 (arXiv 2503.16870); the tau-sampler is optimal resampling with one threshold for all rows,
Fearnhead and Clifford 2003 (JRSS B 65), proposition 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lifelong.errors import InputError, UnknownNameError

MOST_ENTRIES = 255
_BLOCK = 64


@dataclass(frozen=True)
class SparseRows:
    """Entries of some rows, row after row: `counts` [C], and of all entries `ids`, `coded` and `codes` [M].

    `codes` are only those of the coded entries, in order.
    """

    counts: NDArray[np.int64]
    ids: NDArray[np.int64]
    coded: NDArray[np.bool_]
    codes: NDArray[Any]


class Scheme(Protocol):
    """A scheme that makes a distribution sparse."""

    @property
    def unit(self) -> float:
        """Probability of an entry without a code."""

    @property
    def code_type(self) -> str:
        """NumPy type of a code."""

    def check(self, vocab_size: int) -> None:
        """Refuse settings that this vocabulary does not allow."""

    def sparsify(self, probabilities_CV: Tensor, generator: np.random.Generator) -> SparseRows:
        """Entries of every row."""

    def values(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """Probabilities that codes encode."""


@dataclass(frozen=True)
class TopK:
    """The K largest probabilities, as they are or scaled to sum to one. Biased: the tail is lost."""

    k: int
    renormalise: bool = False
    unit: float = 0.0
    code_type: str = "<f2"

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MOST_ENTRIES:
            raise InputError(f"top-k: must be between 1 and {MOST_ENTRIES}, not {self.k}")

    def check(self, vocab_size: int) -> None:
        """K cannot be larger than the vocabulary."""
        if self.k > vocab_size:
            raise InputError(f"top-k: {self.k} entries are asked for, the vocabulary has only {vocab_size}")

    def sparsify(self, probabilities_CV: Tensor, generator: np.random.Generator) -> SparseRows:
        """The K largest of every row, as float16."""
        del generator
        values_CK, ids_CK = probabilities_CV.topk(self.k, 1)
        if self.renormalise:
            values_CK = values_CK / values_CK.sum(1, keepdim=True)
        rows = probabilities_CV.shape[0]
        return SparseRows(
            np.full(rows, self.k, np.int64),
            ids_CK.cpu().numpy().reshape(-1),
            np.ones(rows * self.k, np.bool_),
            values_CK.cpu().numpy().astype(self.code_type).reshape(-1),
        )

    def values(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """Float16 as float32."""
        return codes.astype(np.float32)


@dataclass(frozen=True)
class RandomSampling:
    """`draws` independent draws from the distribution; an entry has its share of the draws. Unbiased."""

    draws: int
    code_type: str = "u1"

    def __post_init__(self) -> None:
        if not 1 <= self.draws <= MOST_ENTRIES:
            raise InputError(f"random sampling: must be between 1 and {MOST_ENTRIES} draws, not {self.draws}")

    @property
    def unit(self) -> float:
        """A token that was drawn once."""
        return 1 / self.draws

    def check(self, vocab_size: int) -> None:
        """Any vocabulary will do."""

    def sparsify(self, probabilities_CV: Tensor, generator: np.random.Generator) -> SparseRows:
        """Counts of the drawn tokens; a code is the count less two."""
        seeded = torch.Generator(probabilities_CV.device).manual_seed(int(generator.integers(2**62)))
        drawn_CK = torch.multinomial(probabilities_CV, self.draws, replacement=True, generator=seeded)
        drawn = np.sort(drawn_CK.cpu().numpy(), 1)
        first = np.ones_like(drawn, dtype=np.bool_)
        first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
        starts = np.flatnonzero(first)
        times = np.diff(np.append(starts, drawn.size))
        coded = times > 1
        codes = (times[coded] - 2).astype(self.code_type)
        return SparseRows(first.sum(1), drawn.reshape(-1)[starts], coded, codes)

    def values(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """Share of the draws."""
        return (codes.astype(np.float32) + 2) / np.float32(self.draws)


@dataclass(frozen=True)
class TauSampler:
    """Probabilities from tau on are kept; the rest is walked through in steps of tau, each hit has weight tau.

    Unbiased, with the smallest variance that so many entries allow, and no token comes twice. Kept
    probabilities are rounded to 8 bits at random, up or down, so that their expectation is exact too.
    """

    tau: float = 1 / 20
    code_type: str = "u1"

    def __post_init__(self) -> None:
        if not 1 / (MOST_ENTRIES - 2) <= self.tau < 1:
            raise InputError(f"tau: must be between 1/{MOST_ENTRIES - 2} and 1, not {self.tau:g}")

    @property
    def unit(self) -> float:
        """Weight of a hit."""
        return self.tau

    def check(self, vocab_size: int) -> None:
        """Any vocabulary will do."""

    def sparsify(self, probabilities_CV: Tensor, generator: np.random.Generator) -> SparseRows:
        """Kept and hit tokens of every row."""
        rows, vocab = probabilities_CV.shape
        tail_CV = torch.nn.functional.pad(probabilities_CV, (0, -vocab % _BLOCK))
        kept_rows, kept_ids = _at_least(tail_CV, self.tau)
        kept = tail_CV[kept_rows, kept_ids].double().cpu().numpy()
        tail_CV[kept_rows, kept_ids] = 0
        scaled = (kept - self.tau) / (1 - self.tau) * 255
        codes = np.clip(np.floor(scaled + generator.random(len(kept))), 0, 255).astype(self.code_type)
        offsets_C = torch.from_numpy(generator.random(rows)).to(tail_CV.device)
        hit_rows, hit_ids = systematic_hits(tail_CV, self.tau, offsets_C)
        owners = torch.cat([kept_rows, hit_rows]).cpu().numpy()
        order = np.argsort(owners, kind="stable")
        coded = np.arange(len(owners)) < len(kept)
        ids = torch.cat([kept_ids, hit_ids]).cpu().numpy()
        # kept entries come row after row, and a stable order leaves them so
        return SparseRows(np.bincount(owners, minlength=rows), ids[order], coded[order], codes)

    def values(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """Probabilities between tau and 1."""
        return (self.tau + codes.astype(np.float64) * ((1 - self.tau) / 255)).astype(np.float32)


def systematic_hits(tail_CV: Tensor, step: float, offsets_C: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and tokens on which marks `step` apart fall, along the cumulated tail of every row.

    A token of probability p < step is hit with probability p / step, at most once. Sums run over blocks of 64
    tokens first (float64 over the blocks), then inside the few blocks that hold a mark.

    Args:
        tail_CV: probabilities below `step`, others 0; a multiple of 64 columns.
        step: distance of the marks.
        offsets_C: uniform in [0, 1): position of the first mark, in steps.

    Returns:
        Rows `[R]` and token ids `[R]`.
    """
    rows, blocks = tail_CV.shape[0], tail_CV.shape[1] // _BLOCK
    tail_CBW = tail_CV.view(rows, blocks, _BLOCK)
    cumulated_CB = tail_CBW.sum(2).double().cumsum(1)
    number = math.ceil(1 / step) + 1
    marks_CJ = (torch.arange(number, device=tail_CV.device, dtype=torch.float64) + offsets_C[:, None]) * step
    mark_rows, which = (marks_CJ < cumulated_CB[:, -1:]).nonzero(as_tuple=True)
    marks_R = marks_CJ[mark_rows, which]
    block_CJ = torch.searchsorted(cumulated_CB, marks_CJ, right=True).clamp_(max=blocks - 1)
    block_R = block_CJ[mark_rows, which]
    before_R = torch.where(block_R > 0, cumulated_CB[mark_rows, (block_R - 1).clamp(min=0)], 0.0)
    inside_RW = tail_CBW[mark_rows, block_R].double()
    place_R = (inside_RW.cumsum(1) <= (marks_R - before_R)[:, None]).sum(1).clamp_(max=_BLOCK - 1)
    # a mark on the very edge of a block may fall behind its last token by rounding: the likeliest one takes it
    empty_R = inside_RW.gather(1, place_R[:, None]).squeeze(1) == 0
    place_R = torch.where(empty_R, inside_RW.argmax(1), place_R)
    return mark_rows, block_R * _BLOCK + place_R


def _at_least(padded_CV: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Rows and columns of the few values from `threshold` on; only blocks whose largest value is are looked into."""
    rows, columns = padded_CV.shape
    padded_CBW = padded_CV.view(rows, columns // _BLOCK, _BLOCK)
    row_R, block_R = (padded_CBW.amax(2) >= threshold).nonzero(as_tuple=True)
    hit_R, place_R = (padded_CBW[row_R, block_R] >= threshold).nonzero(as_tuple=True)
    return row_R[hit_R], block_R[hit_R] * _BLOCK + place_R


SCHEMES: dict[str, type[TopK] | type[RandomSampling] | type[TauSampler]] = {
    "top-k": TopK, "random-sampling": RandomSampling, "tau-sampler": TauSampler,
}  # fmt: skip


def scheme_to_json(scheme: Scheme) -> dict[str, Any]:
    """Name and settings."""
    name = next(name for name, kind in SCHEMES.items() if isinstance(scheme, kind))
    settings = {key: value for key, value in asdict(scheme).items() if key not in ("unit", "code_type")}  # type: ignore[call-overload]
    return {"name": name, **settings}


def scheme_from_json(data: Mapping[str, Any]) -> Scheme:
    """Inverse of `scheme_to_json`."""
    if data["name"] not in SCHEMES:
        raise UnknownNameError("scheme of sparse targets", data["name"], SCHEMES)
    return SCHEMES[data["name"]](**{key: value for key, value in data.items() if key != "name"})


def take_rows(rows: SparseRows, order: NDArray[np.integer]) -> SparseRows:
    """Some of the rows, in this order."""
    counts = rows.counts[order]
    first = np.cumsum(rows.counts) - rows.counts
    entries = np.repeat(first[order] - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))
    coded = rows.coded[entries]
    places = np.cumsum(rows.coded) - 1
    return SparseRows(counts, rows.ids[entries], coded, rows.codes[places[entries][coded]])
