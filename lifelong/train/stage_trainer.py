"""One phase of a stage on `transformers.Trainer`, through its public extension points only.

The loss is computed inside the model's forward by the loss head (see `inherit.head`), already divided by the
number of predicted tokens of the whole optimizer step, so that it does not depend on how the step is cut into
micro-batches.

Shape suffixes: B sequences, T tokens.
"""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lifelong import distributed
from lifelong.errors import CorruptionError, Interrupted
from lifelong.inherit.teachers._teacher import TeacherCost
from lifelong.lm.batch import KnownBatch, WithHostArrays, known_batch
from lifelong.lm.fused import fused_tiles
from lifelong.lm.head import loss_head
from lifelong.records import TrainPoint
from lifelong.train.counters import TokenCounter
from lifelong.train.optimizer import rounding_optimizer
from lifelong.train.phase import PhaseLog, TrainingInputs
from lifelong.train.resume import CheckpointWriter, last_complete_checkpoint, read_state

SECONDS_BETWEEN_SAVES = 120.0
SAVING_SHARE = 0.02
"""Of the time at most, measured by the last save: a state of billions of parameters takes minutes to write."""


class StageTrainer(transformers.Trainer):  # type: ignore[misc]
    """A Trainer whose loss is CE + KI + the methods' terms, for causal and masked language models."""

    loss_is_scaled_for_ga = True

    def __init__(self, model: PreTrainedModel, args: transformers.TrainingArguments, phase: TrainingInputs) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=phase.dataset,
            data_collator=WithHostArrays(phase.collator),
            optimizer_cls_and_kwargs=rounding_optimizer(model, args),
        )
        self.model_accepts_loss_kwargs = True
        self.phase = phase
        if phase.distiller is not None:
            # accelerate puts it around the student's forward alone
            phase.distiller.autocast = self.accelerator.autocast
        self.curve = PhaseLog()
        self.terms_due = True
        self.started = time.monotonic()
        self.probed_before = 0.0
        # Trainer tells old checkpoints by their times, and would delete the newest after a clock was set back
        self.checkpoints_kept = args.save_total_limit or sys.maxsize
        args.save_total_limit = None
        self.counter = TokenCounter(phase.domains, len(phase.methods))
        self.remove_callback(PrinterCallback)
        for callback in self.callback_handler.callbacks:
            if phase.tracker_dir is not None and getattr(callback, "logging_dir", "") is None:
                callback.logging_dir = str(phase.tracker_dir)  # beside the stages: the checkpoints' folder is removed
        self.checkpoints = CheckpointWriter()
        self.add_callback(_StageCallback(self))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning rate of the phase's policy, where it has one."""
        if self.phase.lr_factor is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if getattr(self, "lr_scheduler", None) is None:
            factor = self.phase.lr_factor
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: factor(step / num_training_steps)
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
        batch = given = known_batch(inputs)
        inheritance = None
        if self.phase.distiller is not None:
            progress = self.state.global_step / self.state.max_steps
            inheritance = self.phase.distiller.for_batch(given, progress=progress, step=self.state.global_step)
        for place, method in enumerate(self.phase.methods):
            edited = method.edit_batch(batch)
            if edited is not batch:
                self.counter.count_inserted(place, batch, edited)
            batch = edited
        on_host = batch.on_host if isinstance(batch, KnownBatch) else None
        outputs = model(**batch, inheritance=inheritance, num_items=num_items_in_batch, on_host=on_host)
        loss = outputs.loss
        share = outputs.num_tokens / num_items_in_batch if num_items_in_batch is not None else 1.0
        for method in self.phase.methods:
            # a term of the weights alone is the same in all micro-batches of all processes of a step: once is enough
            if not (method.term_of_batch or self.terms_due):
                continue
            if (term := method.loss_term(self.model)) is not None:
                loss = loss + term * (share if method.term_of_batch else 1 / self.accelerator.num_processes)
        self.terms_due = False
        self.counter.count(given, outputs, taught=inheritance is not None)
        self.counter.count_loss(loss)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # data parallelism averages what must be summed
        return (loss, outputs) if return_outputs else loss

    def reduce_counters(self) -> None:
        """Sum counters over all processes: the first one keeps the totals, the others restart."""
        self.counter.reduce()
        for method, tokens in zip(self.phase.methods, self.counter.take_inserted(), strict=True):
            method.extra_tokens += tokens
        for name, tokens in self.counter.take_replayed().items():
            self.curve.replayed[name] = self.curve.replayed.get(name, 0) + tokens

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add CE, KL and alpha to what Trainer logs, and keep the point for the report."""
        if "loss" in logs:
            self.reduce_counters()
        if "loss" in logs and self.counter.sums:
            sums, tokens = self.counter.sums, float(self.counter.sums["tokens"])
            # Trainer forgets the steps since the last log when it is resumed; these sums do not
            steps = self.state.global_step - (self.curve.train[-1].step if self.curve.train else 0)
            logs["loss"] = float(sums["loss"]) / steps
            logs["ce"] = float(sums["ce"]) / tokens
            if "kl" in sums:
                logs["kl"] = float(sums["kl"]) / tokens
            if self.phase.distiller is not None:
                logs["alpha"] = self.phase.distiller.alpha(self.state.global_step / self.state.max_steps)
                if self.phase.distiller.schedule.is_dynamic:  # as it was, over all predicted tokens
                    logs["alpha"] = float(sums.get("rate", 0.0)) / tokens
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
                replay_tokens=self.counter.replay_tokens,
            )
            self.curve.train.append(point)
            self.phase.observer.stepped(point)
            self.counter.clear()
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
        """Shard the teacher like the student (FSDP2), wrapped by the same policy."""
        if self.is_fsdp_enabled and self.phase.distiller is not None:
            from accelerate.utils.fsdp_utils import fsdp2_prepare_model

            self.phase.distiller.shard(lambda model: fsdp2_prepare_model(self.accelerator, model))

    @property
    def sharding(self) -> str | None:
        """Sharding of the parameters over devices; None where each holds all of them."""
        if self.is_fsdp_enabled:
            return "FSDP2"
        return "DeepSpeed" if self.is_deepspeed_enabled else None

    def cost_of_teaching(self) -> dict[str, Any]:
        """Cost of the teachers of all processes in this phase, and the mass they had no place for."""
        cost = self.phase.distiller.cost if self.phase.distiller is not None else TeacherCost()
        names = sorted(cost.mapped)  # the same in all processes: a teacher is named before it has taught
        mapped = [number for name in names for number in cost.mapped[name]]
        tokens, flops, *rest = distributed.summed([cost.tokens, cost.flops, *mapped]).tolist()
        found = {name: (int(rows), mass) for name, rows, mass in zip(names, rest[::2], rest[1::2], strict=True)}
        return {"teacher_tokens": int(tokens), "teacher_flops": flops, "mapped": found}

    def phase_state(self) -> dict[str, Any]:
        """State that a resumed phase needs beside Trainer's own; every process calls."""
        self.reduce_counters()
        distiller, steering = self.phase.distiller, self.phase.steering
        taught = self.cost_of_teaching()
        return {
            "sharding": self.sharding,
            "curve": {**self.curve.to_json(), "seconds": self.seconds},
            **self.counter.state_dict(),
            "inheritor": {**distiller.state_dict(), **taught} if distiller is not None else None,
            "steering": steering.state_dict() if steering is not None else None,
        }

    def load_phase_state(self, state: Mapping[str, Any]) -> None:
        """Inverse of `phase_state`."""
        self.curve = PhaseLog.from_json(state["curve"])
        inherited = state["inheritor"]
        if distributed.is_main_process():
            self.counter.load_state_dict(state)
        elif inherited is not None:
            # the first process has the sums
            inherited = {**inherited, "teacher_tokens": 0, "teacher_flops": 0.0, "mapped": {}}
        if self.phase.distiller is not None and inherited is not None:
            self.phase.distiller.load_state_dict(inherited)
        if self.phase.steering is not None and state["steering"] is not None:
            self.phase.steering.load_state_dict(state["steering"])

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
        self.last_saved = self.step_ended = time.monotonic()
        self.save_seconds = 0.0

    def on_step_begin(self, _: Any, state: Any, *__: Any, optimizer: Any = None, **___: Any) -> None:
        self.trainer.terms_due = True
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
        if trainer.phase.pre_decay is not None and trainer.phase.pre_decay.step == state.global_step:
            trainer.phase.pre_decay.save()
        trainer.run_probe()
        # what a clock or a signal says in one process has to happen in all of them, at the same step
        self.step_ended = time.monotonic()
        due = max(SECONDS_BETWEEN_SAVES, self.save_seconds / SAVING_SHARE)
        late = False
        if not trainer.checkpoints.is_busy:
            trainer.checkpoints.wait()  # what has failed beside training ends it
            late = distributed.is_main_process() and self.step_ended - self.last_saved > due
        late, stopped = (bool(flag) for flag in distributed.summed([late, trainer.phase.stop.requested]))
        trainer.phase.stop.requested = stopped
        if state.global_step < state.max_steps and (late or stopped):
            control.should_save = True
            control.should_training_stop = stopped
        return control

    def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Add what Trainer does not save; the disk is not waited for."""
        trainer = self.trainer
        phase_state = trainer.phase_state()
        distributed.barrier()  # every process has written its part of the checkpoint
        if not distributed.is_main_process():
            return
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        trainer.checkpoints.complete(folder, phase_state, trainer.phase.methods, kept=trainer.checkpoints_kept)
        self.last_saved = time.monotonic()
        self.save_seconds = self.last_saved - self.step_ended  # Trainer has written its part since


def run_training_phase(model: PreTrainedModel, args: transformers.TrainingArguments, phase: TrainingInputs) -> PhaseLog:
    """Train `model` in place through one phase; continues from the last complete checkpoint in `output_dir`.

    Raises:
        Interrupted: a stop was requested; everything is saved, the same call continues.
    """
    folder = Path(args.output_dir)
    checkpoint = distributed.run_on_main_process(lambda: last_complete_checkpoint(folder))
    trainer = StageTrainer(model, args, phase)
    if checkpoint is not None:
        trainer.load_phase_state(read_state(checkpoint, trainer.sharding, phase.methods))
    trainer.probed_before = trainer.curve.probe_seconds
    phase.stop.deferred = True
    try:
        backend = args.torch_compile_backend if args.torch_compile else None
        with loss_head(model, phase.objective), fused_tiles(backend):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        trainer.checkpoints.wait()
    except (pickle.UnpicklingError, RuntimeError) as error:
        # Trainer reads its state with weights_only: anything but a plain tensor is refused, never run
        if checkpoint is None or not (isinstance(error, pickle.UnpicklingError) or "PytorchStreamReader" in str(error)):
            raise
        reason = str(error).strip().splitlines()[0][:200]
        raise CorruptionError(
            f"{checkpoint}: its training state cannot be loaded ({reason}). Remove this folder: the same command then "
            "resumes from the previous checkpoint, or restarts the stage"
        ) from None
    finally:
        trainer.checkpoints.close()
        phase.stop.deferred = False
    if phase.stop.requested and trainer.state.global_step < trainer.state.max_steps:
        raise Interrupted(f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; saved")
    trainer.curve.tokens = trainer.state.global_step * trainer.tokens_per_step
    trainer.reduce_counters()
    taught = trainer.cost_of_teaching()
    trainer.curve.teacher_tokens, trainer.curve.teacher_flops = int(taught["teacher_tokens"]), taught["teacher_flops"]
    trainer.curve.mapped = {name: (rows, mass) for name, (rows, mass) in taught["mapped"].items()}
    trainer.curve.seconds = trainer.seconds
    model.zero_grad(set_to_none=True)
    return trainer.curve
