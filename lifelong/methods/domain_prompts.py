"""Domain prompts: a few learned tokens per domain follow the first token of every text of that domain.

They are trained with the model or left as they were drawn, and laid beside the stage's model as `prompts.safetensors`
(domain -> embeddings), where the evaluation of downstream tasks takes them from. The loss matrix is measured without
them: the stage's model is a stock one.

Shape suffixes: B sequences, T tokens, P tokens of a prompt, D width, K domains.

Source: Qin et al. 2022, ELLE (Findings of ACL), section 3.3; methods of one token each in their code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lifelong.errors import InputError
from lifelong.methods._method import METHOD_PARAMETER, Batch, Method, StageContext

PARAMETER = "domain_prompts"
PROMPTS_FILE = "prompts.safetensors"


@dataclass
class Plugin(Method):
    """Settings: `tokens` of a prompt, `trained` or not; the strength multiplies the embeddings."""

    adds_parameters: ClassVar[bool] = True

    tokens: int = 1
    trained: bool = True
    prompts: dict[str, Tensor] = field(default_factory=dict, init=False)
    model: Any = field(default=None, init=False)
    first_id: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise InputError(f"methods.domain-prompts.tokens: must be at least 1, not {self.tokens}")

    def begin_stage(self, context: StageContext) -> None:
        """Prompts of all domains become a parameter of the model, reached by ids behind its vocabulary."""
        check_positions(context, self.tokens)
        table = context.model.get_input_embeddings()
        if context.mapping is not None:
            self.prompts = {name: grown_prompt(value, context) for name, value in self.prompts.items()}
        std = float(table.weight.detach().float().std())
        for number, name in enumerate(context.columns):
            if name not in self.prompts:
                generator = torch.Generator().manual_seed(context.seed * 1_009 + number)
                self.prompts[name] = torch.randn(self.tokens, table.weight.shape[1], generator=generator) * std
        rows_KPD = torch.stack([self.prompts[name] for name in context.columns]).to(table.weight)
        parameter = nn.Parameter(rows_KPD, requires_grad=self.trained)
        setattr(parameter, METHOD_PARAMETER, True)
        context.model.register_parameter(PARAMETER, parameter)
        self.model, self.first_id = context.model, table.num_embeddings
        table.__dict__["forward"] = self._with_prompts(table.forward)

    def _with_prompts(self, stock_forward: Any) -> Any:
        def forward(ids_BT: Tensor) -> Tensor:
            is_prompt_BT = ids_BT >= self.first_id
            embedded_BTD: Tensor = stock_forward(ids_BT.clamp(max=self.first_id - 1))
            rows_KPD = getattr(self.model, PARAMETER) * self.strength
            rows_BTD = rows_KPD.flatten(0, 1)[(ids_BT - self.first_id).clamp(min=0)].to(embedded_BTD.dtype)
            return torch.where(is_prompt_BT[..., None], rows_BTD, embedded_BTD)

        return forward

    def edit_batch(self, batch: Batch) -> Batch:
        """Every text of a batch with its domain's prompt behind its first token."""
        first_ids_B = self.first_id + batch["domain_ids"] * self.tokens
        return with_prompt_ids(batch, first_ids_B, self.tokens)[0]

    def end_stage(self, context: StageContext) -> None:
        """Take the prompts out of the model."""
        rows_KPD = getattr(context.model, PARAMETER).detach().float().cpu()
        self.prompts |= {name: rows_KPD[number].clone() for number, name in enumerate(context.columns)}
        delattr(context.model, PARAMETER)
        del context.model.get_input_embeddings().__dict__["forward"]
        self.model = None

    def exports(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The prompts as the model has seen them."""
        return {PROMPTS_FILE: {name: value * self.strength for name, value in self.prompts.items()}}

    def state_dict(self) -> dict[str, Tensor]:
        """The prompts between stages; inside one they are in the model's own state."""
        return dict(self.prompts)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        self.prompts = dict(state)


def with_prompt_ids(batch: Batch, first_ids_B: Tensor, tokens: int) -> tuple[dict[str, Tensor], int]:
    """A batch with `tokens` ids, ascending from that of the row, behind the first token of every segment.

    Positions of what follows move on; nothing inserted is predicted. Rows are padded to the longest.

    Returns:
        The batch, `[B, T + tokens x most segments]`, and how many ids were inserted.
    """
    segments_BT = batch["segment_ids"]
    before_BT = torch.cat([torch.zeros_like(segments_BT[:, :1]), segments_BT[:, :-1]], 1)
    is_first_BT = (segments_BT != before_BT) & (segments_BT > 0)
    started_BT = is_first_BT.long().cumsum(1)
    rows, length = segments_BT.shape
    inserted = int(is_first_BT.sum())
    longer = length + tokens * int(started_BT[:, -1].max())
    place_BT = torch.arange(length, device=segments_BT.device) + tokens * (started_BT - is_first_BT.long())
    # padding is moved behind all prompts of its row, and may overlap nothing there
    edited = dict(batch)
    fills = {"input_ids": 0, "labels": -100, "position_ids": 0, "segment_ids": 0}
    for name, fill in fills.items():
        value_BT = batch[name]
        if name == "position_ids":
            value_BT = value_BT + tokens * (~is_first_BT & (segments_BT > 0)).long()
        edited[name] = torch.full((rows, longer), fill, dtype=value_BT.dtype, device=value_BT.device)
        edited[name].scatter_(1, place_BT, value_BT)
    b, t = is_first_BT.nonzero(as_tuple=True)
    for number in range(tokens):
        at = place_BT[b, t] + 1 + number
        edited["input_ids"][b, at] = first_ids_B[b] + number
        edited["position_ids"][b, at] = batch["position_ids"][b, t] + 1 + number
        edited["segment_ids"][b, at] = segments_BT[b, t]
    return edited, inserted * tokens


def grown_prompt(prompt_PD: Tensor, context: StageContext) -> Tensor:
    """A prompt at the width of the grown model, by the map of the token embeddings' columns."""
    assert context.mapping is not None, "asked for only after a growth"
    model = context.model
    table = model.get_input_embeddings().weight
    name = next(name for name, parameter in model.named_parameters() if parameter is table)
    tensor = context.mapping.tensors[name]
    axis = context.mapping.axes_of(tensor)[1]
    old_PD = torch.cat([prompt_PD, prompt_PD.mean(1, keepdim=True), torch.zeros_like(prompt_PD[:, :1])], 1)
    width = prompt_PD.shape[1]
    source = torch.where(axis.source >= 0, axis.source, torch.where(axis.source == -1, width + 1, width))
    return old_PD[:, source] * axis.scale.to(prompt_PD.dtype) * tensor.factor


def check_positions(context: StageContext, tokens: int) -> None:
    """A table of positions must have room for the prompt in front of a text that fills a row.

    Raises:
        InputError: it has not.
    """
    config = context.model.config
    tables = [
        module
        for name, module in context.model.named_modules()
        if isinstance(module, nn.Embedding) and ("pos" in name.rsplit(".", 1)[-1] or name.endswith("wpe"))
    ]
    room = getattr(config, "max_position_embeddings", None)
    if tables and room is not None and context.sequence_length + tokens > room:
        raise InputError(
            f"methods.domain-prompts.tokens: {tokens} tokens in front of a row of {context.sequence_length} do not fit "
            f"into the model's {room} positions; lower sequence_length to {room - tokens}, or grow `positions`"
        )
