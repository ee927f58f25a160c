"""One phase of a stage on `transformers.Trainer`, through its public extension points only.

The loss is computed inside the model's forward by the loss head (see `inherit.head`), already divided by the
number of predicted tokens of the whole optimizer step, so that it does not depend on how the step is cut into
micro-batches.

Letters: B sequences, T tokens.
"""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lifelong import ranks
from lifelong.checkpoint import read_json, remove_tree, sync_tree, write_json
from lifelong.errors import CorruptionError, InputError, Interrupted
from lifelong.inherit.head import loss_head
from lifelong.inherit.inheritor import Inheritor
from lifelong.inherit.teachers import TeacherCost
from lifelong.records import FactPoint, ProbePoint, RunObserver, TrainPoint
from lifelong.train.method import Method

SECONDS_BETWEEN_SAVES = 120.0
STATE_FILE = "stage_state.json"
METHODS_FILE = "methods.safetensors"
SUMS = ("loss", "ce", "kl", "tokens")


@dataclass
class StopRequest:
    """Set by a signal handler; while `deferred`, training looks at it after every optimizer step, then saves."""

    requested: bool = False
    deferred: bool = False

    def obey(self) -> None:
        """Stop here if that was asked for; what is done is on disk.

        Raises:
            Interrupted: it was.
        """
        if self.requested:
            raise Interrupted("stopped as asked; everything is saved, run the same command to continue")


@dataclass
class PhaseCurve:
    """What a phase leaves behind besides its weights.

    `replayed` counts replayed tokens by domain; `seconds` does not hold `probe_seconds`; `mapped` is as in
    `TeacherCost`.
    """

    train: list[TrainPoint] = field(default_factory=list)
    probes: list[ProbePoint] = field(default_factory=list)
    tokens: int = 0
    teacher_tokens: int = 0
    seconds: float = 0.0
    teacher_flops: float = 0.0
    replayed: dict[str, int] = field(default_factory=dict)
    probe_tokens: int = 0
    probe_seconds: float = 0.0
    facts: list[FactPoint] = field(default_factory=list)
    mapped: dict[str, tuple[int, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PhaseCurve:
        """Inverse of `to_json`."""
        return cls(
            train=[TrainPoint(**point) for point in data["train"]],
            probes=[ProbePoint(**point) for point in data["probes"]],
            tokens=data["tokens"],
            teacher_tokens=data["teacher_tokens"],
            seconds=data["seconds"],
            teacher_flops=data.get("teacher_flops", 0.0),
            replayed=dict(data.get("replayed", {})),
            probe_tokens=data.get("probe_tokens", 0),
            probe_seconds=data.get("probe_seconds", 0.0),
            facts=[FactPoint(**point) for point in data.get("facts", ())],
            mapped={name: (rows, mass) for name, (rows, mass) in data.get("mapped", {}).items()},
        )


class Steering(Protocol):
    """Changes what comes next by what a probe found."""

    def observe(self, step: int, points: Sequence[ProbePoint]) -> None:
        """After `step` optimizer steps these losses were measured."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed phase needs, in plain JSON values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""


@dataclass
class Phase:
    """Everything one phase of training needs besides the model.

    `probe(step, tokens)` gives held-out losses where a probe is due and nothing elsewhere; step 0 is before the
    first one. `domains` are the names behind the batches' `domain_ids`; `tokens_before` were trained on before this
    phase; `tracker_dir` is where trackers that write files put them.
    """

    name: str
    dataset: Any
    collator: Callable[[Sequence[Any]], dict[str, Tensor]]
    objective: str
    tokens_per_step: int
    inheritor: Inheritor | None = None
    methods: Sequence[Method] = ()
    probe: Callable[[int, int], Sequence[ProbePoint]] | None = None
    observer: RunObserver = field(default_factory=RunObserver)
    stop: StopRequest = field(default_factory=StopRequest)
    domains: Sequence[str] = ()
    tokens_before: int = 0
    tracker_dir: Path | None = None
    fact_probe: Callable[[int, int], Sequence[FactPoint]] | None = None
    steering: Steering | None = None
    lr_level: Callable[[float], float] | None = None
    trunk: Trunk | None = None


@dataclass(frozen=True)
class Trunk:
    """Weights that the next stage goes on from, where they are not the last ones: `save` is called after `step`."""

    step: int
    save: Callable[[], None]


class StageTrainer(transformers.Trainer):  # type: ignore[misc]
    """A Trainer whose loss is CE + KI + the methods' terms, for causal and masked language models."""

    loss_is_scaled_for_ga = True

    def __init__(self, model: PreTrainedModel, args: transformers.TrainingArguments, phase: Phase) -> None:
        super().__init__(model=model, args=args, train_dataset=phase.dataset, data_collator=phase.collator)
        self.model_accepts_loss_kwargs = True
        self.phase = phase
        self.curve = PhaseCurve()
        self.started = time.monotonic()
        self.probed_before = 0.0
        # Trainer tells old checkpoints by their times, and would delete the newest after a clock was set back
        self.checkpoints_kept = args.save_total_limit or sys.maxsize
        args.save_total_limit = None
        # of this process since they were last taken together
        self._sums: dict[str, Tensor] = {}
        self._replay_tokens = 0
        self._replayed: dict[str, int] = {}
        self._inserted = [0] * len(phase.methods)
        self.remove_callback(PrinterCallback)
        for callback in self.callback_handler.callbacks:
            if phase.tracker_dir is not None and getattr(callback, "logging_dir", "") is None:
                callback.logging_dir = str(phase.tracker_dir)  # beside the stages: the checkpoints' folder is removed
        self.add_callback(_StageCallback(self))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning rate of the phase's policy, where it has one."""
        if self.phase.lr_level is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if getattr(self, "lr_scheduler", None) is None:
            level = self.phase.lr_level
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: level(step / num_training_steps)
            )
        return self.lr_scheduler

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Scalar loss of one micro-batch, its share of the whole step's mean."""
        inheritance = None
        if self.phase.inheritor is not None:
            progress = self.state.global_step / self.state.max_steps
            inheritance = self.phase.inheritor.for_batch(inputs, progress=progress, step=self.state.global_step)
        batch: Mapping[str, Tensor] = inputs
        for place, method in enumerate(self.phase.methods):
            edited = method.edit_batch(batch)
            if edited is not batch:
                self._inserted[place] += int((edited["segment_ids"] > 0).sum() - (batch["segment_ids"] > 0).sum())
            batch = edited
        outputs = model(**batch, inheritance=inheritance, num_items=num_items_in_batch)
        loss = outputs.loss
        share = outputs.num_tokens / num_items_in_batch if num_items_in_batch is not None else 1.0
        for method in self.phase.methods:
            if (term := method.loss_term(self.model)) is not None:
                loss = loss + term * share
        self._count(inputs, outputs, inheritance is not None)
        self._sums["loss"] = self._sums.get("loss", 0.0) + loss.detach().double().cpu()
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # data parallelism averages what must be summed
        return (loss, outputs) if return_outputs else loss

    def _count(self, inputs: Mapping[str, Tensor], outputs: Any, taught: bool) -> None:
        num_tokens = torch.as_tensor(outputs.num_tokens, dtype=torch.float64)
        for name, value in (("ce", outputs.ce), ("kl", outputs.kl if taught else None)):
            if value is not None:
                self._sums[name] = self._sums.get(name, 0.0) + value.detach().double().cpu() * num_tokens.cpu()
        self._sums["tokens"] = self._sums.get("tokens", torch.zeros((), dtype=torch.float64)) + num_tokens.cpu()
        if "is_replay" in inputs:
            rows = inputs["is_replay"]
            tokens_B = (inputs["segment_ids"][rows] > 0).sum(1)
            self._replay_tokens += int(tokens_B.sum())
            for column, tokens in zip(inputs["domain_ids"][rows].tolist(), tokens_B.tolist(), strict=True):
                name = self.phase.domains[column] if self.phase.domains else str(column)
                self._replayed[name] = self._replayed.get(name, 0) + tokens

    def take_together(self) -> None:
        """Counts and sums of all processes: from here on the first process has them, and the others begin anew."""
        names = self._names_of_domains()
        mine = [float(self._sums.get(name, 0.0)) for name in SUMS]
        mine += [float("kl" in self._sums), float(self._replay_tokens), *map(float, self._inserted)]
        mine += [float(self._replayed.get(name, 0)) for name in names]
        totals = ranks.summed(mine).tolist()
        sums = dict(zip(SUMS, totals, strict=False))
        taught, replay_tokens, *counts = totals[len(SUMS) :]
        inserted, replayed = counts[: len(self._inserted)], counts[len(self._inserted) :]
        for method, tokens in zip(self.phase.methods, inserted, strict=True):
            method.extra_tokens += tokens
        for name, tokens in zip(names, replayed, strict=True):
            if tokens:
                self.curve.replayed[name] = self.curve.replayed.get(name, 0) + int(tokens)
        self._inserted, self._replayed = [0] * len(inserted), {}
        self._sums, self._replay_tokens = {}, 0
        if ranks.is_first() and sums["tokens"]:
            kept = [name for name in SUMS if name != "kl" or taught]
            self._sums = {name: torch.tensor(sums[name], dtype=torch.float64) for name in kept}
            self._replay_tokens = int(replay_tokens)

    def _names_of_domains(self) -> list[str]:
        """Of all that may be replayed, in an order that all processes share."""
        if self.phase.domains:
            return list(self.phase.domains)
        columns = 1 + ranks.highest(max((int(name) for name in self._replayed), default=-1))
        return [str(column) for column in range(columns)]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add CE, KL and alpha to what Trainer logs, and keep the point for the report."""
        if "loss" in logs:
            self.take_together()
        if "loss" in logs and self._sums:
            tokens = float(self._sums["tokens"])
            # Trainer forgets the steps since the last log when it is resumed; these sums do not
            steps = self.state.global_step - (self.curve.train[-1].step if self.curve.train else 0)
            logs["loss"] = float(self._sums["loss"]) / steps
            logs["ce"] = float(self._sums["ce"]) / tokens
            if "kl" in self._sums:
                logs["kl"] = float(self._sums["kl"]) / tokens
            if self.phase.inheritor is not None:
                logs["alpha"] = self.phase.inheritor.alpha(self.state.global_step / self.state.max_steps)
            point = TrainPoint(
                phase=self.phase.name,
                step=self.state.global_step,
                tokens=self.state.global_step * self.tokens_per_step,
                loss=float(logs["loss"]),
                ce=logs["ce"],
                kl=logs.get("kl"),
                alpha=logs.get("alpha", 0.0),
                learning_rate=float(logs.get("learning_rate", 0.0)),
                gradient_norm=float(logs["grad_norm"]) if logs.get("grad_norm") is not None else None,
                replay_tokens=self._replay_tokens,
            )
            self.curve.train.append(point)
            self.phase.observer.stepped(point)
            self._sums, self._replay_tokens = {}, 0
        logs["stream_tokens"] = self.phase.tokens_before + self.state.global_step * self.tokens_per_step
        super().log(logs, start_time)

    def run_probe(self) -> None:
        """Held-out losses where a probe is due: for the report, the observer and every tracker, by domain."""
        started = time.monotonic()
        step = self.state.global_step
        tokens = step * self.tokens_per_step
        if self.phase.fact_probe is not None and (facts := self.phase.fact_probe(step, tokens)):
            self.curve.facts += facts
            self._log_beside({"eval_facts": sum(point.log_probability for point in facts) / len(facts)})
        points = list(self.phase.probe(step, tokens)) if self.phase.probe is not None else []
        if not points:
            return
        for point in points:
            self.curve.probes.append(point)
            self.phase.observer.probed(point)
        if self.phase.steering is not None and step > 0:
            self.phase.steering.observe(step, points)
        self.curve.probe_tokens += sum(point.evaluated_tokens for point in points)
        self.curve.probe_seconds += time.monotonic() - started
        self._log_beside({f"eval_probe/{point.domain}": point.nats_per_token for point in points})

    def _log_beside(self, logs: dict[str, float]) -> None:
        """Log without taking the place of the step's own log: logging anything clears the request for it."""
        due = self.control.should_log
        self.log(logs)
        self.control.should_log = due

    def shard_teacher(self) -> None:
        """With FSDP2 the teacher lies in parts like the student, wrapped by the same policy."""
        if self.is_fsdp_enabled and self.phase.inheritor is not None:
            from accelerate.utils.fsdp_utils import fsdp2_prepare_model

            self.phase.inheritor.shard(lambda model: fsdp2_prepare_model(self.accelerator, model))

    @property
    def sharding(self) -> str | None:
        """How parameters lie in parts on the devices; None where each holds all of them."""
        if self.is_fsdp_enabled:
            return "FSDP2"
        return "DeepSpeed" if self.is_deepspeed_enabled else None

    def cost_of_teaching(self) -> dict[str, Any]:
        """What the teachers of all processes have cost in this phase, and what they had no place for."""
        cost = self.phase.inheritor.cost if self.phase.inheritor is not None else TeacherCost()
        names = sorted(cost.mapped)  # the same in all processes: a teacher is named before it has taught
        mapped = [number for name in names for number in cost.mapped[name]]
        tokens, flops, *rest = ranks.summed([cost.tokens, cost.flops, *mapped]).tolist()
        found = {name: (int(rows), mass) for name, rows, mass in zip(names, rest[::2], rest[1::2], strict=True)}
        return {"teacher_tokens": int(tokens), "teacher_flops": flops, "mapped": found}

    @property
    def seconds(self) -> float:
        """Spent on this phase so far, by earlier processes too; probes have their own."""
        return self.curve.seconds + time.monotonic() - self.started - (self.curve.probe_seconds - self.probed_before)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step over all devices."""
        return self.phase.tokens_per_step


class _StageCallback(TrainerCallback):  # type: ignore[misc]
    """Hooks of the methods, probes, saving by time and on request, and the state that a resumed phase needs."""

    def __init__(self, trainer: StageTrainer) -> None:
        self.trainer = trainer
        self.last_saved = time.monotonic()

    def on_step_begin(self, _: Any, state: Any, *__: Any, optimizer: Any = None, **___: Any) -> None:
        for method in self.trainer.phase.methods:
            method.optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper steps on its own terms
            method.begin_step(self.trainer.model, state.global_step)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        for method in self.trainer.phase.methods:
            method.edit_gradients(self.trainer.model)

    def on_train_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        self.trainer.shard_teacher()
        if state.global_step == 0:
            self.trainer.run_probe()

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> Any:
        trainer = self.trainer
        for method in trainer.phase.methods:
            method.end_step(trainer.model)
        if trainer.phase.trunk is not None and trainer.phase.trunk.step == state.global_step:
            trainer.phase.trunk.save()
        trainer.run_probe()
        # what a clock or a signal says in one process has to happen in all of them, at the same step
        late = ranks.is_first() and time.monotonic() - self.last_saved > SECONDS_BETWEEN_SAVES
        late, stopped = (bool(flag) for flag in ranks.summed([late, trainer.phase.stop.requested]))
        trainer.phase.stop.requested = stopped
        if state.global_step < state.max_steps and (late or stopped):
            control.should_save = True
            control.should_training_stop = stopped
        return control

    def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Written last: a checkpoint without this file was cut short and is passed over."""
        self.last_saved = time.monotonic()
        trainer = self.trainer
        trainer.take_together()
        taught = trainer.cost_of_teaching()
        ranks.barrier()  # every process has written its part of the checkpoint
        if not ranks.is_first():
            return
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        inheritor = trainer.phase.inheritor
        save_methods(trainer.phase.methods, folder / METHODS_FILE)
        sync_tree(folder)  # a power cut must not leave the state file without what it vouches for
        write_json(
            folder / STATE_FILE,
            {
                "sizes": _sizes(folder),
                "sharding": trainer.sharding,
                "curve": {**trainer.curve.to_json(), "seconds": trainer.seconds},
                "sums": {name: float(value) for name, value in trainer._sums.items()},
                "replay_tokens": trainer._replay_tokens,
                "inheritor": {**inheritor.state_dict(), **taught} if inheritor is not None else None,
                "steering": trainer.phase.steering.state_dict() if trainer.phase.steering is not None else None,
            },
        )
        for outdated in _checkpoints(folder.parent)[: -trainer.checkpoints_kept]:
            remove_tree(outdated)


def train_phase(model: PreTrainedModel, args: transformers.TrainingArguments, phase: Phase) -> PhaseCurve:
    """Train `model` in place through one phase; continues from the last complete checkpoint in `output_dir`.

    Raises:
        Interrupted: a stop was requested; everything is saved, the same call continues.
    """
    folder = Path(args.output_dir)
    checkpoint = ranks.on_first(lambda: _last_complete_checkpoint(folder))
    trainer = StageTrainer(model, args, phase)
    if checkpoint is not None:
        _restore(trainer, checkpoint)
    trainer.probed_before = trainer.curve.probe_seconds
    phase.stop.deferred = True
    try:
        with loss_head(model, phase.objective):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    except (pickle.UnpicklingError, RuntimeError) as error:
        # Trainer reads its state with weights_only: what is no plain tensor is refused, never run
        if checkpoint is None or not (isinstance(error, pickle.UnpicklingError) or "PytorchStreamReader" in str(error)):
            raise
        reason = str(error).strip().splitlines()[0][:200]
        raise CorruptionError(
            f"{checkpoint}: its training state cannot be loaded ({reason}). Remove this folder: the same command then "
            "goes on from the checkpoint before it, or from the beginning of the stage"
        ) from None
    finally:
        phase.stop.deferred = False
    if phase.stop.requested and trainer.state.global_step < trainer.state.max_steps:
        raise Interrupted(f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; saved")
    trainer.curve.tokens = trainer.state.global_step * trainer.tokens_per_step
    trainer.take_together()
    taught = trainer.cost_of_teaching()
    trainer.curve.teacher_tokens, trainer.curve.teacher_flops = int(taught["teacher_tokens"]), taught["teacher_flops"]
    trainer.curve.mapped = {name: (rows, mass) for name, (rows, mass) in taught["mapped"].items()}
    trainer.curve.seconds = trainer.seconds
    model.zero_grad(set_to_none=True)
    return trainer.curve


def _restore(trainer: StageTrainer, checkpoint: Path) -> None:
    state = read_json(checkpoint / STATE_FILE)
    if (written := state.get("sharding")) != trainer.sharding:
        raise InputError(
            f"{checkpoint}: was written by {_launched_as(written)}, this is {_launched_as(trainer.sharding)}; launch "
            "it as before (the number of processes is free), or remove this folder: the stage then begins anew"
        )
    trainer.curve = PhaseCurve.from_json(state["curve"])
    inherited = state["inheritor"]
    if ranks.is_first():
        trainer._sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in state["sums"].items()}
        trainer._replay_tokens = state["replay_tokens"]
    elif inherited is not None:
        # the first process has the sums
        inherited = {**inherited, "teacher_tokens": 0, "teacher_flops": 0.0, "mapped": {}}
    if trainer.phase.inheritor is not None and inherited is not None:
        trainer.phase.inheritor.load_state_dict(inherited)
    if trainer.phase.steering is not None and state["steering"] is not None:
        trainer.phase.steering.load_state_dict(state["steering"])
    load_methods(trainer.phase.methods, checkpoint / METHODS_FILE)


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a phase in the order of their steps."""
    return sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))


def _last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; those behind it are removed."""
    checkpoints = _checkpoints(folder)
    while checkpoints:
        if _is_complete(checkpoints[-1]):
            return checkpoints[-1]
        remove_tree(checkpoints.pop())
    return None


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Bytes of every file, by its path inside the checkpoint."""
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file())
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}


def _launched_as(sharding: str | None) -> str:
    return f"a run with {sharding}" if sharding else "a run with whole parameters on every device"


def _is_complete(checkpoint: Path) -> bool:
    try:
        sizes = read_json(checkpoint / STATE_FILE)["sizes"]
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items() if name != STATE_FILE)
    except (CorruptionError, OSError, KeyError, TypeError):
        return False


def save_methods(methods: Sequence[Method], path: Path) -> None:
    """State of all methods in one safetensors file, and what they have cost; none is written without a method."""
    state = {}
    for i, method in enumerate(methods):
        state[f"{i}.extra_tokens"] = torch.tensor(method.extra_tokens, dtype=torch.float64)
        state |= {f"{i}.{name}": t.detach().cpu().contiguous() for name, t in method.state_dict().items()}
    if state:
        save_file(state, path)


def load_methods(methods: Sequence[Method], path: Path) -> None:
    """Inverse of `save_methods`."""
    if not path.is_file():
        return
    state = load_file(path)
    for index, method in enumerate(methods):
        prefix = f"{index}."
        own = {name[len(prefix) :]: t for name, t in state.items() if name.startswith(prefix)}
        method.extra_tokens = float(own.pop("extra_tokens", 0.0))
        method.load_state_dict(own)
