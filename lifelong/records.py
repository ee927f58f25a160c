"""Frozen values passed between layers. No torch here: a report must open in a blink.

Sign convention, stated once: losses are nats per token; forgetting is positive when a domain got worse.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

NATS_PER_BIT = math.log(2.0)
NOT_TRAINED = -1
"""In `LossMatrix.stage_domains`: the stage trained on none of its domains."""
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Names of domains: they become folders."""


@dataclass(frozen=True)
class DomainLoss:
    """Held-out loss of one model on one domain.

    `document_nats` and `document_tokens` hold the same sums per held-out document, in order, so that a
    confidence interval over documents can be computed without running the model again. Where they are fewer than the
    documents that `tokens` counts, only these were read, and `nats` is what they say of all (`estimated_loss`).
    """

    domain: str
    nats: float
    tokens: int
    bytes: int
    document_nats: tuple[float, ...] = ()
    document_tokens: tuple[int, ...] = ()
    seconds: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether every document was read and kept its sums."""
        return sum(self.document_tokens) == self.tokens

    @property
    def tokens_read(self) -> int:
        """Predicted tokens of the documents that were read; fewer than `tokens` where the rest is estimated."""
        return sum(self.document_tokens) or self.tokens

    @property
    def nats_per_token(self) -> float:
        """Sum of the negative log-likelihoods over predicted tokens, divided by their number."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """The same sum in bits over the UTF-8 bytes of the documents; comparable across tokenizers."""
        return self.nats / NATS_PER_BIT / self.bytes

    @property
    def perplexity(self) -> float:
        """Exp of the nats per token; infinite where a diverged loss has no finite one."""
        try:
            return math.exp(self.nats_per_token)
        except OverflowError:
            return math.inf


Row = tuple["float | None", ...]


@dataclass(frozen=True)
class LossMatrix:
    """R[t][k]: held-out loss on domain k after stage t; `initial` is row -1, the model before the stream.

    `stage_domains[t]` is the column that stage t trained on. An entry is None where a domain was not yet
    known when that stage was evaluated (a run extended later). `watched` domains are measured and never trained on;
    `watched_nats_per_token[t]` is their row after stage t.
    """

    domains: tuple[str, ...]
    stages: tuple[str, ...]
    stage_domains: tuple[int, ...]
    initial: Row
    nats_per_token: tuple[Row, ...]
    bits_per_byte: tuple[Row, ...] = ()
    tokens: tuple[tuple[int | None, ...], ...] = ()
    initial_bits_per_byte: Row = ()
    watched: tuple[str, ...] = ()
    watched_initial: Row = ()
    watched_nats_per_token: tuple[Row, ...] = ()

    @property
    def watched_matrix(self) -> LossMatrix:
        """The watched domains as a matrix of their own, which no stage trains on."""
        never = (NOT_TRAINED,) * len(self.stages)
        return LossMatrix(self.watched, self.stages, never, self.watched_initial, self.watched_nats_per_token)

    def series(self, domain: str) -> list[float | None]:
        """Losses of a domain of the stream or of a watched one: of the initial model, then after every stage."""
        learned = domain in self.domains
        column = (self.domains if learned else self.watched).index(domain)
        rows = (self.initial, *self.nats_per_token) if learned else (self.watched_initial, *self.watched_nats_per_token)
        return [row[column] for row in rows]

    def to_json(self) -> dict[str, Any]:
        """The keys of `matrix.json` that describe the matrix."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LossMatrix:
        """Inverse of `to_json`; other keys of `matrix.json` are ignored."""
        return cls(
            domains=tuple(data["domains"]),
            stages=tuple(data["stages"]),
            stage_domains=tuple(data["stage_domains"]),
            initial=tuple(data["initial"]),
            nats_per_token=tuple(tuple(values) for values in data["nats_per_token"]),
            bits_per_byte=tuple(tuple(values) for values in data.get("bits_per_byte", ())),
            tokens=tuple(tuple(values) for values in data.get("tokens", ())),
            initial_bits_per_byte=tuple(data.get("initial_bits_per_byte", ())),
            watched=tuple(data.get("watched", ())),
            watched_initial=tuple(data.get("watched_initial", ())),
            watched_nats_per_token=tuple(tuple(values) for values in data.get("watched_nats_per_token", ())),
        )


@dataclass(frozen=True)
class Cost:
    """Cost of training or evaluation. FLOPs count multiply and add separately; `flops` includes `teacher_flops`."""

    tokens: int = 0
    flops: float = 0.0
    teacher_flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.tokens + other.tokens,
            self.flops + other.flops,
            self.teacher_flops + other.teacher_flops,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class ComputeLedger:
    """Cost by phase of a stage: grow, recover, train, probe, evaluate, ..."""

    phases: Mapping[str, Cost] = field(default_factory=dict)

    @property
    def total(self) -> Cost:
        """Sum over phases."""
        return sum(self.phases.values(), Cost())

    def adding(self, phase: str, cost: Cost) -> ComputeLedger:
        """A ledger with `cost` added to `phase`."""
        return ComputeLedger({**self.phases, phase: self.phases.get(phase, Cost()) + cost})

    def to_json(self) -> dict[str, Any]:
        """Phase name to its cost."""
        return {phase: asdict(cost) for phase, cost in self.phases.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ComputeLedger:
        """Inverse of `to_json`."""
        return cls({phase: Cost(**cost) for phase, cost in data.items()})


@dataclass(frozen=True)
class ExpansionReport:
    """Report of a growth: what it did and how far the function moved.

    `source` and `target` are shapes (axis name to size). Differences are between the logits of the small
    and the grown model on the same tokens; a figure that was not measured is None.
    """

    family: str
    mode: str
    source: Mapping[str, Any]
    target: Mapping[str, Any]
    parameters_before: int
    parameters_after: int
    max_logit_difference_float64: float | None = None
    max_logit_difference_float32: float | None = None
    max_logit_difference_bfloat16: float | None = None
    loss_difference: float | None = None
    kl_divergence: float | None = None
    top1_agreement: float | None = None
    tolerance: float = 1e-10
    passed: bool = True
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ExpansionReport:
        """Inverse of `to_json`; other keys of `expansion.json` (the map) are ignored."""
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        return cls(**{**known, "notes": tuple(data.get("notes", ()))})


@dataclass(frozen=True)
class TrainPoint:
    """One logged optimizer step of a stage. `tokens` counts from the start of the phase."""

    phase: str
    step: int
    tokens: int
    loss: float
    ce: float | None = None
    kl: float | None = None
    alpha: float = 0.0
    learning_rate: float = 0.0
    gradient_norm: float | None = None
    replay_tokens: int = 0


@dataclass(frozen=True)
class ProbePoint:
    """A small held-out evaluation during a stage. `tokens` counts from the start of its training phase.

    `evaluated_tokens` is how many held-out tokens it looked at.
    """

    step: int
    tokens: int
    domain: str
    nats_per_token: float
    evaluated_tokens: int = 0


@dataclass(frozen=True)
class FactPoint:
    """Log-probability in nats of the missing part of fact number `fact`; `tokens` as in `ProbePoint`."""

    step: int
    tokens: int
    fact: int
    log_probability: float


@dataclass(frozen=True)
class FactCurve:
    """Facts that were put into a run's text: sentences, tokens at which (of which stage), and what was seen after.

    `points[t]` are those of stage t.
    """

    texts: tuple[str, ...]
    stage: int
    injected_at: tuple[int, ...]
    points: tuple[tuple[FactPoint, ...], ...]


@dataclass(frozen=True)
class StageRecord:
    """One committed stage, one line of the ledger. Hashes are SHA-256 in hex; `replay` counts tokens by domain.

    `sources` holds, by corpus that the stage read first or again, what its card says of it: source, licence, citation
    and revision, where they are given.
    `generated` says which model wrote text for the stage, and how; None where none did.
    """

    index: int
    name: str
    domain: str
    parent: str
    recipe_hash: str
    tokens: int
    shape: Mapping[str, Any]
    parameters: int
    cost: Mapping[str, Any]
    row: Mapping[str, Mapping[str, float]]
    fingerprints: Mapping[str, str]
    seeds: Mapping[str, int]
    versions: Mapping[str, str]
    files: Mapping[str, str]
    expansion: Mapping[str, Any] | None = None
    replay: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    committed_at: str = ""
    sources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    generated: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StageRecord:
        """Inverse of `to_json`."""
        return cls(**{**data, "notes": tuple(data.get("notes", ()))})


@dataclass(frozen=True)
class Sample:
    """Text generated after stage `stage` (-1: the initial model) from the opening of a held-out document."""

    stage: int
    domain: str
    prompt: str
    text: str


UNPROTECTED_CHAT = (
    "the base is a chat model (it has a chat template) and nothing protects that: no replay, no teacher, no method, no "
    "watched text; training on plain text alone makes it forget to stop and to follow instructions. See `inherit:`, "
    "`replay:`, or merge the instruction residual back: lifelong merge RUN --residual INSTRUCT --base BASE"
)


@dataclass(frozen=True)
class ChatAnswer:
    """A greedy answer and what the rules say of it; None where a rule does not apply. `tokens` were generated."""

    ask: str
    text: str
    tokens: int
    stops: bool
    format: bool | None
    language: bool | None


@dataclass(frozen=True)
class ChatScores:
    """Answers of the model after stage `stage` (-1: the initial model) to the chat prompts."""

    stage: int
    prompt_tokens: int
    answers: tuple[ChatAnswer, ...]

    @property
    def tokens(self) -> int:
        """Tokens of prompts and answers."""
        return self.prompt_tokens + sum(answer.tokens for answer in self.answers)

    @property
    def rates(self) -> dict[str, tuple[int, int]]:
        """Rule -> answers that pass, answers that it applies to."""
        asked = {rule: [getattr(answer, rule) for answer in self.answers] for rule in ("stops", "format", "language")}
        return {
            rule: (sum(value is True for value in found), len(found) - found.count(None))
            for rule, found in asked.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ChatScores:
        """Inverse of `to_json`."""
        return cls(data["stage"], data["prompt_tokens"], tuple(ChatAnswer(**answer) for answer in data["answers"]))


@dataclass(frozen=True)
class TaskRun:
    """Test scores of one fine-tuned copy. `prompt` is none, right or wrong; `epochs` until it was stopped."""

    prompt: str
    seed: int
    macro_f1: float
    micro_f1: float
    accuracy: float
    dev_macro_f1: float
    epochs: int


@dataclass(frozen=True)
class TaskScores:
    """A model on a downstream task; `examples` holds (used, available) by split, `record` the stage's hash."""

    task: str
    domain: str
    num_classes: int
    examples: Mapping[str, tuple[int, int]]
    settings: Mapping[str, Any]
    runs: tuple[TaskRun, ...]
    stage: str = ""
    record: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskScores:
        """Inverse of `to_json`."""
        examples = {name: (int(used), int(available)) for name, (used, available) in data["examples"].items()}
        return cls(**{**data, "examples": examples, "runs": tuple(TaskRun(**run) for run in data["runs"])})


@dataclass(frozen=True)
class HarnessScores:
    """A stage on tasks of lm-evaluation-harness: task -> metric -> value; `limits` are examples, None for all."""

    stage: str
    record: str
    results: Mapping[str, Mapping[str, float]]
    limits: Mapping[str, int | None]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> HarnessScores:
        """Inverse of `to_json`; files of earlier versions have one limit for all tasks."""
        limits = data.get("limits", dict.fromkeys(data["results"], data.get("limit")))
        return cls(data["stage"], data["record"], data["results"], limits)


@dataclass(frozen=True)
class FrontPoint:
    """Held-out losses, in nats per token by domain, of the model at `weight` from the old (0) to the trained (1)."""

    weight: float
    losses: Mapping[str, float]


@dataclass(frozen=True)
class Front:
    """Models between the ones before and after a stage; `record` is the hash of the stage's line in the ledger."""

    stage: str
    domain: str
    record: str
    points: tuple[FrontPoint, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Front:
        """Inverse of `to_json`."""
        return cls(**{**data, "points": tuple(FrontPoint(**point) for point in data["points"])})


@dataclass(frozen=True)
class RunHistory:
    """Everything a report needs, read from a run folder; the sequences run over committed stages.

    `unfinished` names the stages of the recipe that are not committed yet. `losses[t]` holds the
    held-out losses after stage t with their per-document sums, `initial_losses` those of row -1. `head` is the
    hash of the ledger's last line, which fixes everything above it. `fronts` (models between two stages)
    and `tasks` and `harness` (downstream) were measured after the run; `chat` holds the answers of a chat model;
    `notes` say what could not be used. `watched_losses` are those of watched domains, row -1 first; empty where none is
    watched. `rejected` names the next stage if it broke its budget. `sources` is that of all lines of the
    ledger together; `peak_memory` is in bytes, by stage, where it was measured.
    """

    name: str
    path: str
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    stages: tuple[StageRecord, ...]
    unfinished: tuple[str, ...]
    matrix: LossMatrix
    initial_losses: tuple[DomainLoss, ...]
    losses: tuple[tuple[DomainLoss, ...], ...]
    train: tuple[tuple[TrainPoint, ...], ...]
    probes: tuple[tuple[ProbePoint, ...], ...]
    expansions: tuple[ExpansionReport | None, ...]
    samples: tuple[Sample, ...] = ()
    head: str = ""
    fronts: tuple[Front, ...] = ()
    tasks: tuple[TaskScores, ...] = ()
    harness: tuple[HarnessScores, ...] = ()
    chat: tuple[ChatScores, ...] = ()
    facts: FactCurve | None = None
    notes: tuple[str, ...] = ()
    watched_losses: tuple[tuple[DomainLoss, ...], ...] = ()
    rejected: tuple[str, ...] = ()
    sources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    peak_memory: Mapping[str, float] = field(default_factory=dict)

    @property
    def measured_losses(self) -> tuple[tuple[DomainLoss, ...], ...]:
        """Held-out losses of every row of the matrix, row -1 first, those of watched domains included."""
        rows = (self.initial_losses, *self.losses)
        watched = self.watched_losses or ((),) * len(rows)
        return tuple((*row, *more) for row, more in zip(rows, watched, strict=True))


class RunObserver:
    """Told what a run does, as it does it; every hook may be left out. A live display is one of these.

    Phases of a stage: prepare, generate, targets, grow, recover, train, evaluate, commit.
    """

    def run_started(self, name: str, stage_names: Sequence[str], stage_tokens: Sequence[int]) -> None:
        """The whole plan: one name and one token budget per stage."""

    def stage_started(self, index: int, shape: Mapping[str, Any], parameters: int) -> None:
        """Stage `index` begins (or continues) with a model of this shape."""

    def stage_skipped(self, record: StageRecord) -> None:
        """The stage was committed by an earlier invocation."""

    def phase_started(self, phase: str, total_tokens: int) -> None:
        """A phase begins; `total_tokens` is 0 where its length is not counted in tokens."""

    def stepped(self, point: TrainPoint) -> None:
        """One optimizer step was logged."""

    def advanced(self, phase: str, tokens: int, total: int) -> None:
        """A phase without optimizer steps has done this much of its tokens."""

    def text_read(self, domain: str, num_bytes: int) -> None:
        """So many UTF-8 bytes of a corpus have been read and tokenised; told about once a megabyte."""

    def probed(self, point: ProbePoint) -> None:
        """A small evaluation during a stage."""

    def expanded(self, report: ExpansionReport) -> None:
        """The model grew and was verified."""

    def evaluated(self, stage: int, losses: Sequence[DomainLoss]) -> None:
        """All domains were evaluated after stage `stage` (-1: before the first)."""

    def noted(self, text: str) -> None:
        """Something the user should read: a warning, a fallback."""

    def stage_committed(self, record: StageRecord) -> None:
        """The stage is safe on disk."""

    def run_finished(self, result: RunResult) -> None:
        """The stream is done."""


@dataclass(frozen=True)
class RunResult:
    """Result of `run_recipe`."""

    out: str
    matrix: LossMatrix
    metrics: Mapping[str, float | None]
    cost: Cost


def _plain(value: Any) -> Any:
    if isinstance(value, str | float | int | None):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return value
