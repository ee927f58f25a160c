"""A first recipe for a checkpoint and some domains, with settings that fit the memory of this machine, and its reasons.

Memory is that of `plan`: parts of one step, traced without weights. What a file cannot tell (how long the base was
trained) is asked for, or said in a comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lifelong.errors import InputError, LifelongError
from lifelong.lm.checkpoint import load_config, meta_model
from lifelong.lm.flops import num_parameters
from lifelong.plan.advice import base_rate
from lifelong.plan.memory import DeviceMemory, Devices, device_memory
from lifelong.plan.shapes import Shapes
from lifelong.plan.text import sample_corpora
from lifelong.recipe.files import parse_recipe
from lifelong.stream.cards.documents import read_documents
from lifelong.stream.cards.domain import Domain, load_domain
from lifelong.train.arguments import training_arguments

GIB = 2**30
ROOM = 0.8
"""Share of the free memory that a step may take: the plan leaves out the libraries and what the allocator wastes."""
MOST_ROWS, STEPS = 64, 200
LENGTHS = {"cuda": 2048, "cpu": 256}
MOST_TOKENS = {"cuda": 100_000_000, "cpu": 2_000_000}
UNKNOWN_TOKENS = 1_000_000
YOUNG = 100
"""Tokens a parameter below which a base is far from the end of its training."""
RATES = {"young": 3e-4, "unknown": 1e-4, "overtrained": 5e-5}
EVALUATION_SHARE = 0.1
WATCHED = ("wiki", "wikitext-103", "code", "news", "python-reference", "python-stdlib")
"""General text that is watched where nothing is named, the first three that can be read here."""
BUDGET = "2%"


@dataclass(frozen=True)
class Machine:
    """What a run may use: kind of device, free bytes, and whether it multiplies in bfloat16."""

    kind: Literal["cpu", "cuda"]
    free: int
    bfloat16: bool

    @classmethod
    def found(cls) -> Machine:
        """This machine; its first GPU where it has one."""
        import psutil
        import torch

        if torch.cuda.is_available():
            return cls("cuda", int(torch.cuda.mem_get_info()[0]), torch.cuda.is_bf16_supported())
        return cls("cpu", int(psutil.virtual_memory().available), False)


@dataclass(frozen=True)
class Fit:
    """Settings of a step, and what `plan` says of them; `memory` is None where nothing fits."""

    length: int
    rows: int
    accumulation: int
    checkpointing: bool
    teacher: bool
    memory: DeviceMemory | None


@dataclass(frozen=True)
class DraftInputs:
    """Inputs of a draft.

    Args:
        checkpoint: folder or hub id of the base.
        domains: cards to learn, in order.
        watch: cards to watch; general text that is here where none is named.
        old: cards of text like the base's own, to be trained on along with the new.
        base_tokens: tokens that the base was trained on.
        machine: to fit; this one where absent.
    """

    checkpoint: str
    domains: Sequence[str]
    watch: Sequence[str] = ()
    old: Sequence[str] = ()
    base_tokens: int | None = None
    machine: Machine | None = None


def draft_recipe(inputs: DraftInputs) -> str:
    """A commented recipe as YAML.

    Raises:
        InputError: no such checkpoint or card, or nothing to learn.
    """
    if not inputs.domains:
        raise InputError("init: name at least one domain to learn (--domain CARD)")
    config = load_config(inputs.checkpoint)
    machine = inputs.machine or Machine.found()
    objective = _objective(config)
    domains = [load_domain(card) for card in inputs.domains]
    named = {domain.name for domain in (*domains, *(load_domain(card) for card in inputs.old))}
    watch = list(inputs.watch) or watchable(named)
    tokens = _tokens(inputs, objective, machine)
    wants_teacher = not inputs.old
    fit = fitting(config, objective, machine, min(count for count, _ in tokens), teacher=wants_teacher)
    lines = [
        *_head(inputs, config, domains[0], machine, objective),
        *_stages(inputs, tokens),
        *_keeping(inputs, watch, fit, wants_teacher, len(domains), sum(count for count, _ in tokens)),
        *_training(inputs, config, fit, machine),
        *_carrying(len(domains)),
        *_measuring(min(count for count, _ in tokens), len(named) + len(watch)),
    ]
    return "\n".join(lines) + "\n"


def watchable(learned: set[str]) -> list[str]:
    """General text whose first document can be read here without a network, at most three cards."""
    return [name for name in WATCHED if name not in learned and _is_here(name)][:3]


def _is_here(card: str) -> bool:
    try:
        domain: Domain = load_domain(card)
        return not domain.source.remote and next(read_documents(domain, "valid"), None) is not None
    except LifelongError:
        return False


def fitting(config: Any, objective: str, machine: Machine, tokens: int, *, teacher: bool) -> Fit:
    """The largest batch that fits; first gradient checkpointing, then the teacher, then length is given up for it."""
    positions = getattr(config, "max_position_embeddings", None) or LENGTHS[machine.kind]
    length = min(LENGTHS[machine.kind], int(positions))
    while True:
        rows = _power_of_two(min(MOST_ROWS, max(1, tokens // (STEPS * length))))
        for with_teacher in (True, False) if teacher else (False,):
            for checkpointing in (False, True):
                trial = Fit(length, rows, 1, checkpointing, with_teacher, None)
                if (found := _largest(config, objective, machine, trial)) is not None:
                    return found
        if length <= LENGTHS["cpu"]:
            return Fit(length, 1, rows, checkpointing=True, teacher=False, memory=None)
        length //= 2


def _largest(config: Any, objective: str, machine: Machine, trial: Fit) -> Fit | None:
    """The trial in micro-batches as large as fit; None where one row does not."""
    rows = trial.rows
    one = _memory(config, objective, machine, replace(trial, rows=1))
    if one.total > ROOM * machine.free:
        return None
    if rows > 1:
        # what grows with the rows grows in proportion: two points tell where the end is, and the end is looked at
        slope = max(1, _memory(config, objective, machine, replace(trial, rows=2)).total - one.total)
        rows = min(rows, _power_of_two(1 + max(0, int((ROOM * machine.free - one.total) / slope))))
    while (memory := _memory(config, objective, machine, replace(trial, rows=rows))).total > ROOM * machine.free:
        rows //= 2
    return replace(trial, rows=rows, accumulation=trial.rows // rows, memory=memory)


def _memory(config: Any, objective: str, machine: Machine, fit: Fit) -> DeviceMemory:
    section = {
        "per_device_train_batch_size": fit.rows, "gradient_accumulation_steps": fit.accumulation,
        "use_cpu": machine.kind == "cpu", **({"gradient_checkpointing": True} if fit.checkpointing else {}),
    }  # fmt: skip
    arguments = training_arguments(section, output_dir=Path("unused"), max_steps=1, seed=0)
    return device_memory(
        config, arguments, Devices(kind=machine.kind), objective=objective, length=fit.length,
        teachers=[config] if fit.teacher else [], low_precision=machine.bfloat16,
    )  # fmt: skip


def _power_of_two(number: int) -> int:
    return 1 << (max(1, number).bit_length() - 1)


def _tokens(inputs: DraftInputs, objective: str, machine: Machine) -> list[tuple[int, str]]:
    """Budget of every stage, and where it comes from."""
    plain = {
        "name": "draft", "model": {"checkpoint": inputs.checkpoint}, "objective": objective,
        "stages": [{"domain": card, "tokens": UNKNOWN_TOKENS} for card in inputs.domains],
    }  # fmt: skip
    facts = sample_corpora(parse_recipe(plain)).facts
    found = []
    for card in inputs.domains:
        size = facts[card].tokens if card in facts else None
        most = MOST_TOKENS[machine.kind]
        if size is None:
            found.append((UNKNOWN_TOKENS, "the corpus was not read here: its size is not known"))
        elif size > most:
            found.append((most, f"of about {_count(size)} in the corpus"))
        else:
            found.append((_rounded(size), f"one pass over the corpus, about {_count(size)}"))
    return found


def _rounded(number: float) -> int:
    """Two significant digits, downwards."""
    unit = int(10 ** max(0, len(str(int(number))) - 2))
    return max(1, int(number) // unit * unit)


def _count(number: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name} tokens"
    return f"{number:.0f} tokens"


def _head(inputs: DraftInputs, config: Any, first: Domain, machine: Machine, objective: str) -> Iterator[str]:
    parameters = num_parameters(meta_model(config, objective))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{Path(inputs.checkpoint).name}-{first.name}").lstrip("-._") or "draft"
    room = f"{machine.free / GIB:.1f} GiB free"
    yield f"# {config.model_type}, {parameters / 1e6:.3g}M parameters, for a {machine.kind} with {room}. To look at it:"
    yield "#   lifelong plan THIS_FILE --measure"
    yield "# and to start it:"
    yield f"#   lifelong run THIS_FILE --out runs/{name}"
    yield f"name: {name}"
    yield f"model: {{checkpoint: {_quoted(inputs.checkpoint)}}}"
    yield f"objective: {objective}"


def _quoted(text: str) -> str:
    """A path or an id as a YAML scalar."""
    return text if re.fullmatch(r"[A-Za-z0-9_./-]*[A-Za-z_/][A-Za-z0-9_./-]*", text) else f"'{text}'"


def _stages(inputs: DraftInputs, tokens: Sequence[tuple[int, str]]) -> Iterator[str]:
    if inputs.old:
        yield "# Old text is at hand: each stage is trained on it and on the new text in equal parts."
    yield "stages:"
    together = f", together_with: [{', '.join(map(_quoted, inputs.old))}]" if inputs.old else ""
    for card, (count, reason) in zip(inputs.domains, tokens, strict=True):
        yield f"  - {{domain: {_quoted(card)}, tokens: {count}{together}}}   # {reason}"


def _keeping(
    inputs: DraftInputs, watch: Sequence[str], fit: Fit, wants_teacher: bool, stages: int, tokens: int
) -> Iterator[str]:
    """What is watched, allowed and done against forgetting."""
    if watch:
        yield "# Measured before the first stage, after every stage and in probes; never trained on."
        yield f"watch: [{', '.join(map(_quoted, watch))}]"
        yield "# Allowed rise of perplexity over the best that each ever had, the base included."
        names = [load_domain(card).name for card in watch]
        yield f"budget: {{{', '.join(f'{name}: {BUDGET}' for name in names)}}}"
    else:
        yield "# No general text can be read on this machine. Name some: without it nobody sees what the base loses."
        yield "# watch: [general-text]"
        yield f"# budget: {{general-text: {BUDGET}}}"
    if inputs.old:
        return
    if stages > 1:
        yield "# Earlier stages are replayed from a memory, so that their corpora are not needed again."
        yield f"replay: {{memory_tokens: {_rounded(tokens / 10)}, share: 0.3}}"
    if fit.teacher:
        yield "# No old text was named (--old CARD): the base teaches the stage at a constant rate. It costs a third"
        yield "# more FLOPs and a part of the gain on new text, and keeps most of what was known."
        yield "inherit: {teacher: previous, on: all, alpha: 0.5, schedule: constant, temperature: 1.0}"
    elif wants_teacher:
        yield "# A teacher does not fit beside the model. Afterwards `lifelong merge RUN` goes a part of the way back."


def _training(inputs: DraftInputs, config: Any, fit: Fit, machine: Machine) -> Iterator[str]:
    yield f"sequence_length: {fit.length}"
    rate, reason = _rate(inputs, config)
    yield "train:"
    yield f"  # {reason}"
    yield f"  learning_rate: {rate:g}"
    used = "does not fit by plan's figures, even so: a smaller base or a larger machine is needed"
    if fit.memory is not None:
        free = f"{machine.free / GIB:.1f} free"
        used = f"{fit.memory.total / GIB:.2f} GiB of {free} by plan's figures, fullest in the {fit.memory.at}"
    yield f"  per_device_train_batch_size: {fit.rows}   # {used}"
    step = fit.rows * fit.accumulation * fit.length
    yield f"  gradient_accumulation_steps: {fit.accumulation}   # {step:,} tokens a step"
    if fit.checkpointing:
        yield "  gradient_checkpointing: true   # without it no batch fits; a third more FLOPs"
    if machine.kind == "cuda":
        yield f"  bf16: {str(machine.bfloat16).lower()}"
    else:
        yield "  use_cpu: true   # float32: most processors have no units for bfloat16"


def _carrying(stages: int) -> Iterator[str]:
    """Three seeds of the study: better in the mean by .03 nats (p .0006), worse on the last domain by .013."""
    if stages > 1:
        yield "# Adam's moments go on from stage to stage: less is forgotten, for 8 bytes a parameter on the disk."
        yield "carry_optimizer: true"


def _rate(inputs: DraftInputs, config: Any) -> tuple[float, str]:
    """Peak learning rate, and why."""
    plain = {
        "name": "draft", "model": {"checkpoint": inputs.checkpoint},
        "stages": [{"domain": inputs.domains[0], "tokens": 1}],
    }  # fmt: skip
    if (known := base_rate(parse_recipe(plain), Shapes())) is not None:
        return known, "The peak of the stage that this checkpoint is; more would forget more."
    if inputs.base_tokens is None:
        return RATES["unknown"], (
            "How many tokens the base has seen is not in the checkpoint (name them: --base-tokens 2T); between the "
            f"{RATES['young']:g} of a young base and the {RATES['overtrained']:g} of an overtrained one."
        )
    parameters = num_parameters(meta_model(config, _objective(config)))
    ratio = inputs.base_tokens / parameters
    kind = "young" if ratio < YOUNG else "overtrained"
    return RATES[kind], f"{kind.capitalize()} base: {ratio:.3g} tokens a parameter."


def _objective(config: Any) -> str:
    return "mlm" if any("MaskedLM" in name for name in config.architectures or ()) else "clm"


def _measuring(tokens: int, domains: int) -> Iterator[str]:
    """Held-out tokens whose evaluation stays a tenth of a stage: a forward pass is a third of a step."""
    held_out = _rounded(min(100_000, max(1_000, 3 * EVALUATION_SHARE * tokens / (2 * max(1, domains)))))
    yield f"evaluate: {{tokens: {held_out}}}   # per domain, before and after a stage: about a tenth of it"
    yield "seed: 0"
