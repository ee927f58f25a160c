"""Interface of a continual-learning method, hook by hook; a method is a dataclass whose fields are its settings.

A method file in `lifelong/methods/` defines one subclass named `Plugin`. With strength 0 a method is
never called, so that it equals sequential training bit for bit. In the order of a stage:

    begin_stage
      for every step: begin_step; for every micro-batch: edit_batch, loss_term; edit_gradients; end_step
    end_stage
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from lifelong.expand import ExpansionMap

Batch = Mapping[str, "Tensor"]


class MemoryBatches(Protocol):
    """Batches drawn from the replay memory, as pure functions of the draw: nothing has to be saved to resume."""

    @property
    def domains(self) -> Sequence[str]:
        """Earlier domains that have something in the memory."""

    def batch(self, size: int, draw: int, domain: str | None = None) -> Batch:
        """`size` rows of one domain, or of all of them in equal shares; another `draw` gives other rows."""


@dataclass
class StageContext:
    """Facts about the stage that a method may use.

    Attributes:
        stage_index: counts from 0.
        domain: name of the stage's domain.
        model: it has its size for this stage already.
        seed: of the stage.
        objective: clm or mlm.
        has_learned: whether the model had learned anything before this stage.
        columns: names behind the `domain_ids` of a batch.
        mapping: the growth of this stage; None where the model kept its size.
        sequence_length: tokens of a row.
        num_steps: optimizer steps of the stage.
        memory: of earlier stages; None where there is none.
        own_batches: (count) -> that many batches of one row each of the stage's own text, always the same ones.
        loss: (model, batch) -> mean CE of the batch in nats per token, differentiable; its rows are counted as cost.
        start: reads the weights that the stage's training begins with once more.
        base: names them for whoever reads the run folder: the checkpoint, or the path in the run before any growth.
    """

    stage_index: int
    domain: str
    model: PreTrainedModel
    seed: int
    objective: str = "clm"
    has_learned: bool = True
    columns: Sequence[str] = ()
    mapping: ExpansionMap | None = None
    sequence_length: int = 0
    num_steps: int = 0
    memory: MemoryBatches | None = None
    own_batches: Callable[[int], Iterator[Batch]] = lambda _: iter(())
    loss: Callable[[PreTrainedModel, Batch], Tensor] | None = None
    start: Callable[[], PreTrainedModel] | None = None
    base: Callable[[], str] = lambda: ""


@dataclass
class Method:
    """Base of all methods: every hook may be left out.

    Class attributes: `needs_memory`, the method needs a replay memory; `supports_sharding`, it is right when every
    device holds only a part of each parameter (FSDP, ZeRO-3; other methods are refused there); `exclusive`, it replaces
    parameters, so that no other method can be combined with it; `adds_parameters`, the model is not a stock one while
    a stage is trained; `term_of_batch`, its `loss_term` depends on the micro-batch and not on the weights alone.
    """

    strength: float = 1.0
    extra_tokens: float = field(default=0.0, init=False)
    """Tokens that went forward and backward for this method alone, beside those of training."""
    optimizer: Any = field(default=None, init=False, repr=False)
    """The raw optimizer, while a stage is trained."""

    needs_memory: ClassVar[bool] = False
    supports_sharding: ClassVar[bool] = False
    exclusive: ClassVar[bool] = False
    adds_parameters: ClassVar[bool] = False
    term_of_batch: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        """Methods of other packages may still say `sharded` and `alone`."""
        super().__init_subclass__()
        for before, now in (("sharded", "supports_sharding"), ("alone", "exclusive")):
            if before in vars(cls):
                setattr(cls, now, vars(cls)[before])

    def begin_stage(self, context: StageContext) -> None:
        """The model has its size and its starting weights; nothing is trained yet."""

    def mix(self, weights: Mapping[str, float], context: StageContext) -> Mapping[str, float]:
        """Weights by which replay draws from the earlier domains; return them changed or as they are."""
        del context
        return weights

    def begin_step(self, model: PreTrainedModel, step: int) -> None:
        """An optimizer step begins; `step` of them are done. No gradient is there yet and none may be left behind."""

    def edit_batch(self, batch: Batch) -> Batch:
        """Replace a micro-batch; as many tokens must be predicted."""
        return batch

    def loss_term(self, model: PreTrainedModel) -> Tensor | None:
        """A term added to the loss of the whole optimizer step, or None; asked for in its first micro-batch."""
        del model
        return None

    def edit_gradients(self, model: PreTrainedModel) -> None:
        """Gradients of the whole step are there, clipped; the optimizer comes next."""

    def end_step(self, model: PreTrainedModel) -> None:
        """The optimizer has moved the weights."""

    def end_stage(self, context: StageContext) -> None:
        """The stage is trained and not yet committed; the model must be a stock one again."""

    def exports(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Files to lay beside the stage's model: file name -> tensors, written as safetensors."""
        return {}

    def write_files(self, folder: Path) -> None:
        """Lay further files beside the stage's model."""

    def check_here(self) -> Iterator[str]:
        """A line for everything that this machine lacks for the method."""
        return iter(())

    def check_model(self, model: Any) -> Iterator[str]:
        """A line for everything that is wrong about the settings for a model, which has no storage."""
        del model
        return iter(())

    def planned_tokens(self, num_steps: int, sequence_length: int, earlier_domains: int) -> float:
        """Expected `extra_tokens` after a stage, as far as known beforehand."""
        del num_steps, sequence_length, earlier_domains
        return 0.0

    def state_dict(self) -> dict[str, Tensor]:
        """State that a later stage or a resumed run needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`."""


METHOD_PARAMETER = "added_by_a_method"
"""Attribute of parameters that a method adds to the model for a stage."""


def stock_parameters(model: Any) -> dict[str, Any]:
    """Parameters of the model by name, without those that a method has added for the time of a stage."""
    return {name: value for name, value in model.named_parameters() if not getattr(value, METHOD_PARAMETER, False)}


AVALANCHE = "avalanche:"
