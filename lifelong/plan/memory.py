"""Memory of one device in a stage: the constant part, and the peak of a step.

| part | bytes, P parameters, N devices |
|---|---|
| weights | 4 P, in bfloat16 2 P, in four bits 0.52 P; sharded a part and what is gathered at a time |
| gradients | 4 P once all are computed, in bfloat16 2 P; sharded a part and those of one layer |
| moments | 8 P for Adam, in bfloat16 4 P (see `MOMENT_BYTES`); sharded a part |
| activations, head | from the model, the loss and autograd themselves, see `plan.step` |
| teacher | as the student's weights, of the teacher; sharded as the student |

Beside an adapter on a frozen base, gradients and moments are those of the adapter, in float32.

Three moments compete: within a micro-batch (gradients grow while activations go), the same with the gradients of
earlier micro-batches there, and the step of the optimizer, when nothing but the state is there.

Source: Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054, section 3) for the parts and how they are sharded; Korthikanti
et al. 2022 (arXiv 2205.05198) for activations, which are not sharded by data parallelism.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lifelong.errors import InputError, UnknownNameError
from lifelong.lm.checkpoint import meta_model
from lifelong.lm.flops import num_parameters
from lifelong.methods._frozen_base import BYTES_PER_WEIGHT, FOUR_BITS, quantised_layers
from lifelong.plan.step import Moment, StepSettings, step_memory
from lifelong.train.carried_moments import ADAM
from lifelong.train.stochastic_adamw import CHUNK, CHUNK_BYTES

SHARDINGS = ("none", "ddp", "fsdp2", "zero2", "zero3")
FLOAT32, BFLOAT16 = 4, 2
# bytes a parameter of what the optimizers of TrainingArguments keep
MOMENT_BYTES = {
    "adamw_torch": 8.0, "adamw_torch_fused": 8.0, "adamw_torch_4bit": 1.0, "adamw_torch_8bit": 2.0,
    "adamw_8bit": 2.0, "adamw_bnb_8bit": 2.0, "paged_adamw_8bit": 2.0, "paged_adamw_32bit": 8.0, "lion_32bit": 4.0,
    "lion_8bit": 1.0, "adafactor": 0.0, "sgd": 0.0, "rmsprop": 4.0, "adagrad": 4.0,
}  # fmt: skip
FOREACH_BYTES = 4.0
"""A list-wise optimizer holds one more copy of the gradients while it steps; on an accelerator, where it is used."""


@dataclass(frozen=True)
class Devices:
    """Devices that a run is planned for.

    Args:
        count: devices that share each optimizer step.
        sharding: none, ddp, fsdp2, zero2 or zero3.
        kind: cpu or cuda.

    Raises:
        InputError: a count or a sharding that cannot be.
    """

    count: int = 1
    sharding: str = "none"
    kind: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"--devices: at least 1, not {self.count}")
        if self.sharding not in SHARDINGS:
            raise UnknownNameError("sharding", self.sharding, SHARDINGS, "--sharding")
        if self.kind not in ("cpu", "cuda"):
            raise UnknownNameError("kind of device", self.kind, ("cpu", "cuda"), "--device")
        if self.sharding == "none" and self.count > 1:
            raise InputError(
                f"--sharding none: is for one device, not {self.count}; ddp keeps a whole model on each, fsdp2, zero2 "
                "and zero3 a part of it"
            )

    @property
    def is_sharded(self) -> bool:
        """Whether the weights are sharded: a device holds only a part of them."""
        return self.sharding in ("fsdp2", "zero3")


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one device at the fullest moment of a step, by what they are for; `at` names the moment."""

    weights: int
    gradients: int
    moments: int
    activations: int
    head: int
    teacher: int
    at: str

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return self.weights + self.gradients + self.moments + self.activations + self.head + self.teacher

    def to_json(self) -> dict[str, Any]:
        """Parts and total."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class Held:
    """How a stage holds its weights.

    Args:
        dtype: of the weights that are trained, or written: float32 or bfloat16.
        base: of the frozen weights beside an adapter, where it is another one; or `4bit`.
        adapter: name and settings of the method that adds it, as sorted pairs; None where all weights are trained.
    """

    dtype: str = "float32"
    base: str | None = None
    adapter: tuple[tuple[str, Any], ...] | None = None

    @property
    def computes(self) -> str:
        """Precision of the weights in a product."""
        return self.dtype if self.base in (None, FOUR_BITS) else str(self.base)

    @property
    def bytes_per_weight(self) -> int:
        """Of a weight that is not in four bits."""
        return BFLOAT16 if self.computes == "bfloat16" else FLOAT32


@dataclass(frozen=True)
class _State:
    """Bytes that do not depend on the batch: weights, moments and teacher always, gradients once they are computed."""

    weights: float
    gradients: float
    gradient_share: float
    moments: float
    teacher: float
    stepping: float


def device_memory(
    config: Any,
    arguments: Any,
    devices: Devices,
    *,
    objective: str,
    length: int,
    teachers: Sequence[Any] = (),
    low_precision: bool = False,
    held: Held | None = None,
) -> DeviceMemory:
    """Memory of one device in a stage.

    Args:
        config: of the model.
        arguments: TrainingArguments of the stage.
        devices: what it runs on.
        objective: clm or mlm.
        length: tokens of a row.
        teachers: configurations of the models that run beside the student.
        low_precision: autocast (`bf16`, `fp16`); asked apart, for arguments may be made where there is no such device.
        held: precision of the weights, and an adapter on them; float32 and none where not given.

    Raises:
        InputError: the model cannot run on tensors without content.
    """
    held = held or Held()
    settings = StepSettings(
        objective,
        arguments.per_device_train_batch_size,
        length,
        devices.kind,
        low_precision,
        bool(arguments.gradient_checkpointing),
        tuple(sorted((arguments.gradient_checkpointing_kwargs or {}).items())),
        max((int(teacher.hidden_size) for teacher in teachers), default=None),
        held.computes,
        held.adapter,
    )
    step = step_memory(config, settings)
    state = _state(config, settings, devices, teachers, arguments, held, step.gradients)
    beside = state.gradients - step.gradients * state.gradient_share
    candidates = {"micro-batch": step.peak(state.gradient_share)}
    if arguments.gradient_accumulation_steps > 1:
        candidates["later micro-batch"] = step.peak(state.gradient_share, accumulated=True)
    candidates["optimizer step"] = Moment(int(step.gradients * state.gradient_share), int(state.stepping), 0)
    found = [
        DeviceMemory(
            int(state.weights), int(moment.gradients + beside), int(state.moments), moment.activations, moment.head,
            int(state.teacher), name,
        )
        for name, moment in candidates.items()
    ]  # fmt: skip
    return max(found, key=lambda memory: memory.total)


def _state(
    config: Any,
    settings: StepSettings,
    devices: Devices,
    teachers: Sequence[Any],
    arguments: Any,
    held: Held,
    gradients: float,
) -> _State:
    model = meta_model(config, settings.objective)
    parameters, size = num_parameters(model), held.bytes_per_weight
    taught_by = size * sum(num_parameters(meta_model(teacher, settings.objective)) for teacher in teachers)
    count, low = devices.count, BFLOAT16 if settings.bf16 else size
    rounds = held.adapter is None and size == BFLOAT16
    trained = parameters if held.adapter is None else gradients / FLOAT32
    gradients = trained * (size if held.adapter is None else FLOAT32)
    moments = moment_bytes(arguments, rounds=rounds) * trained
    stepping = 0.0
    if rounds and _optimizer(arguments) in ADAM:
        stepping = min(trained, CHUNK["cpu" if devices.kind == "cpu" else "other"]) * CHUNK_BYTES
    elif _optimizer(arguments) == "adamw_torch" and devices.kind == "cuda":
        stepping = FOREACH_BYTES * trained
    whole = float(size * parameters)
    if held.adapter is not None:
        whole = _frozen_bytes(model, held) + FLOAT32 * trained
    if devices.sharding in ("none", "ddp"):
        # DDP reduces gradients in buckets of its own, as large as the gradients
        buckets = gradients if devices.sharding == "ddp" else 0
        return _State(whole, gradients + buckets, 1.0, moments, taught_by, stepping)
    layer, rest = _layer_and_rest(model, parameters)
    if devices.sharding == "fsdp2":
        # embeddings and head stay gathered through the step; of the layers one is used while the next arrives
        gathered = low * (rest + 2 * layer) * (count > 1)
        reduced = FLOAT32 * layer * (count > 1)
        return _State(
            whole / count + gathered, gradients / count + reduced, 1 / count, moments / count, taught_by / count,
            stepping / count,
        )  # fmt: skip
    # DeepSpeed trains a copy in the low precision and keeps float32 weights and moments beside it, in parts
    master = FLOAT32 * parameters / count
    part = 1 / count
    if devices.sharding == "zero2":
        weights, teacher_bytes = low * parameters + master, float(taught_by)
    else:
        weights, teacher_bytes = low * (parameters * part + (rest + 2 * layer)) + master, taught_by * part
    reduced = FLOAT32 * layer
    return _State(weights, gradients * part + reduced, part, moments * part, teacher_bytes, stepping * part)


def _frozen_bytes(model: Any, held: Held) -> float:
    """Of the base of an adapter; in four bits with the largest layer as it is multiplied."""
    parameters, size = num_parameters(model), held.bytes_per_weight
    if held.base != FOUR_BITS:
        return float(size * parameters)
    layers = [layer.weight.numel() for layer in quantised_layers(model).values()]
    return BYTES_PER_WEIGHT * sum(layers) + size * (parameters - sum(layers) + max(layers, default=0))


def moment_bytes(arguments: Any, *, rounds: bool = False) -> float:
    """Bytes a parameter that the optimizer keeps; those of Adam where it is not known.

    Args:
        arguments: TrainingArguments.
        rounds: weights and Adam's moments are in bfloat16.
    """
    size = MOMENT_BYTES.get(_optimizer(arguments), 8.0)
    return size / 2 if rounds and _optimizer(arguments) in ADAM else size


def _optimizer(arguments: Any) -> str:
    return str(getattr(arguments.optim, "value", arguments.optim))


def _layer_and_rest(model: Any, parameters: int) -> tuple[int, int]:
    """Parameters of the largest layer, and of everything outside the layers (embeddings, last norm, head)."""
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        prefix = _layer_of(name)
        if prefix:
            sizes[prefix] = sizes.get(prefix, 0) + parameter.numel()
    return max(sizes.values(), default=0), parameters - sum(sizes.values())


def _layer_of(name: str) -> str:
    """`model.layers.3` of a parameter's name; nothing for one outside the layers."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    return "" if number is None else ".".join(parts[: number + 1])


def parts_of(memory: DeviceMemory) -> Mapping[str, int]:
    """The parts by name, in the order in which they are shown."""
    return {name: int(value) for name, value in asdict(memory).items() if name != "at"}
