"""`{model: NAME}`, or its name alone: a frozen model that runs beside the student; `previous` is the previous stage's.

Shape suffixes: B sequences, T tokens, N predicted tokens, D width, E the teacher's, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator

from lifelong.errors import InputError, LifelongError
from lifelong.inherit.settings import PREVIOUS, TeacherSection
from lifelong.inherit.teachers._teacher import Batch, Given, Teacher, TeacherCost, TeacherInputs
from lifelong.schema import expand_variables

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lifelong.lm.loss import OnlineTarget, Target
    from lifelong.stream.tokenizers.vocabulary import IntArray


class Plugin(TeacherSection):
    """A checkpoint, or `previous`."""

    place: ClassVar[int] = 0

    model: str

    @field_validator("model")
    @classmethod
    def _variables(cls, value: str) -> str:
        return expand_variables(value)

    def written(self) -> Any:
        """The name alone."""
        return self.model

    def models(self) -> list[str]:
        """This one."""
        return [self.model]

    def routes(self, domains: Sequence[str]) -> list[tuple[str, list[str]]]:
        """A checkpoint teaches all of them."""
        return [] if self.model == PREVIOUS else [(self.model, list(domains))]

    def flops_per_token(self, forward: Mapping[str, float]) -> float:
        """FLOPs per token of its forward pass."""
        return forward.get(self.model, 0.0)

    def check(self, given: Given) -> Iterator[str]:
        """Check that the checkpoint exists."""
        from lifelong.lm.checkpoint import load_config

        del given
        try:
            if self.model != PREVIOUS:
                load_config(self.model)
        except LifelongError as error:
            yield str(error)

    def build(self, inputs: TeacherInputs, domains: Sequence[str]) -> Teacher | None:
        """The model, behind a map of ids where it has a vocabulary of its own."""
        import torch

        from lifelong.inherit.mapped import MappedTeacher
        from lifelong.lm.attention import attend_like
        from lifelong.lm.checkpoint import load_model
        from lifelong.lm.flops import forward_flops_per_token

        source = inputs.previous if self.model == PREVIOUS else self.model
        if source is None:
            return None
        revision = inputs.previous_revision if self.model == PREVIOUS else None
        model = load_model(source, inputs.objective, revision, inputs.student.dtype)
        attend_like(model, inputs.student)
        ids_V = None if self.model == PREVIOUS else self._id_map(inputs, domains)
        teacher = OnlineTeacher(
            model,
            inputs.objective,
            vocab_size=self._real_tokens(model.config.vocab_size, inputs) if ids_V is None else len(ids_V),
            flops_per_token=forward_flops_per_token(model, inputs.sequence_length, inputs.objective),
        )
        if ids_V is None:
            return teacher
        if model.config.vocab_size < len(ids_V):
            raise InputError(
                f"inherit.teacher: {self.model!r} has a vocabulary of {model.config.vocab_size} tokens, the tokenizer "
                f"that `tokenizer.merge` names for it has {len(ids_V)}"
            )
        return MappedTeacher(teacher, torch.from_numpy(ids_V), len(inputs.tokenizer), self.model)

    def _id_map(self, inputs: TeacherInputs, domains: Sequence[str]) -> IntArray | None:
        """Ids of the checkpoint's tokens in the union; None where it reads the run's ids.

        Equal width does not prove an equal vocabulary: where the teacher brings a tokenizer, it is compared.
        """
        from lifelong.inherit.vocabularies import read_by_all
        from lifelong.stream.tokenizers.load import load_tokenizer, tokenizer_fingerprint

        try:
            theirs = tokenizer_fingerprint(load_tokenizer(self.model))
        except InputError:
            theirs = None  # weights without a tokenizer: believed, where their width fits
        if inputs.merged is not None:
            own = inputs.merged.domains.get(domains[0]) if domains else None
            theirs = own.fingerprint if theirs is None and own is not None else theirs
            return None if theirs is None else read_by_all(inputs.merged, domains, theirs, self.model)
        mine = tokenizer_fingerprint(inputs.tokenizer)
        if theirs is not None and theirs != mine:
            raise InputError(
                f"inherit.teacher: {self.model!r} has another tokenizer than the run (fingerprint {theirs[:12]}, the "
                f"run's is {mine[:12]}); a teacher must read the same tokens: name `tokenizer: {{checkpoint: "
                f"{self.model}}}` in the recipe, take a teacher that was trained with the run's tokenizer, or merge "
                f"the vocabularies of several teachers: `tokenizer: {{merge: {{{inputs.domain}: {self.model}, ...}}}}`"
            )
        return None

    def _real_tokens(self, teacher_rows: int, inputs: TeacherInputs) -> int | None:
        """Tokens that the teacher knows, where its output embedding has rows of padding or fewer than the student's.

        Raises:
            InputError: the teacher lacks tokens of the run's tokenizer.
        """
        student_rows, tokens = inputs.student.config.vocab_size, len(inputs.tokenizer)
        if teacher_rows < min(tokens, student_rows) and self.model != PREVIOUS:
            raise InputError(
                f"inherit.teacher: {self.model!r} has a vocabulary of {teacher_rows} tokens, the student of "
                f"{student_rows}; a teacher must use the student's tokenizer: take another one, or grow its vocabulary "
                f"first (lifelong expand --vocab-size {student_rows})"
            )
        real = min(teacher_rows, student_rows, tokens)
        return real if real < max(teacher_rows, student_rows) else None


class OnlineTeacher(Teacher):
    """A frozen model that runs beside the student, in evaluation mode and with the same packing mask.

    Args:
        model: the teacher.
        objective: clm or mlm.
        vocab_size: tokens of its vocabulary, where its embedding has more rows than the student's, or fewer.
        flops_per_token: of its forward pass, for the cost ledger.
    """

    def __init__(
        self, model: Any, objective: str, *, vocab_size: int | None = None, flops_per_token: float = 0.0
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.objective, self.vocab_size, self.flops_per_token = objective, vocab_size, flops_per_token
        self.is_sharded = self._is_rounded = False
        self._cost = TeacherCost()

    @property
    def cost(self) -> TeacherCost:
        """Forward passes so far."""
        return self._cost

    def targets(self, batch: Batch) -> Sequence[Target]:
        """One online target; the head is applied later, chunk by chunk, to labelled rows only."""
        num_tokens = batch["input_ids"].numel()
        self._cost.tokens += num_tokens
        self._cost.flops += num_tokens * self.flops_per_token
        return [self._run(batch)]

    def _run(self, batch: Batch) -> OnlineTarget:
        import torch
        from torch import Tensor

        from lifelong.lm.batch import predicted_places
        from lifelong.lm.head import at_the_head, head_settings, predicted_rows
        from lifelong.lm.loss import OnlineTarget

        device = batch["input_ids"].device
        if not self.is_sharded and torch.is_autocast_enabled(device.type):
            self._hold_rounded(torch.get_autocast_dtype(device.type))
        if not self.is_sharded and next(self.model.parameters()).device != device:
            self.model.to(device)

        def target(hidden_BTD: Tensor) -> OnlineTarget:
            settings = head_settings(self.model)
            if self.is_sharded:  # the whole output embedding is there inside the forward only
                settings = {k: v.clone() if isinstance(v, Tensor) else v for k, v in settings.items()}
            places = predicted_places(batch, self.objective)
            hidden_NE, _, _ = predicted_rows(hidden_BTD, batch["labels"], self.objective, places)
            return OnlineTarget(hidden_NE, settings.pop("weight_VD"), vocab_size=self.vocab_size, **settings)

        with torch.no_grad():
            return at_the_head(self.model, batch, self.objective, target)

    def _hold_rounded(self, dtype: torch.dtype) -> None:
        """Hold the weights of linear layers as autocast rounds them at every use: the same bits from half the memory.

        Not under float16, where the head stays in float32, nor what is used elsewhere too, as a tied embedding is.
        """
        import torch
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        if self._is_rounded or dtype != torch.bfloat16:
            return
        self._is_rounded = True
        products = [module for module in self.model.modules() if type(module) in (nn.Linear, Conv1D)]
        others = [module for module in self.model.modules() if type(module) not in (nn.Linear, Conv1D)]
        elsewhere = {id(value) for module in others for value in module._parameters.values()}
        for module in products:
            if id(module.weight) not in elsewhere:
                module.weight.data = module.weight.data.to(dtype)

    def attend(self, batch: Batch) -> None:
        """Where every process holds a part of the model, it runs in all of them or in none: here on one sequence."""
        import numpy as np

        from lifelong.lm.batch import sequences

        if self.is_sharded:
            self._run(sequences(batch, np.arange(1)))

    def shard(self, wrap: Callable[[Any], Any]) -> None:
        """Hold a part of each parameter only."""
        from lifelong.lm.packed import packing_of

        packing_of(self.model, self.objective)  # found out by a trial, which needs the whole model
        self.model, self.is_sharded = wrap(self.model), True

    def model_for(self, domain_id: int) -> Any:
        """The model, whatever the domain."""
        del domain_id
        return self.model

    def close(self) -> None:
        """Drop the model."""
        self.model = None
