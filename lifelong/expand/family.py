"""Architecture families: the role that every parameter has in growth. No logic in a family's file.

Spaces, what the rows or columns of a parameter count:

| space | meaning |
|---|---|
| stream | the residual stream, width `hidden_size` |
| q, k, v | query, key and value heads x head size, as a projection makes them |
| o | query heads x head size, as the output projection reads them |
| ffn | neurons of the feed-forward layer |
| vocab, positions, types | rows of the embeddings |
| experts | experts of a mixture |
| each_head | query heads, one number each |
| attentions | query heads of all layers, layer by layer |
| gate | query heads x head size, as a gate on what attention puts out is made |
| stays | whatever no axis changes: classes, token types, shared experts, states of linear attention |

`embedding`, `reader`, `writer`, `bias`, `pre_norm`, ... below make the entries of a family's table. A parameter's
name holds `{layer}` in place of its layer number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal

from lifelong.errors import ExpansionError, UnknownNameError
from lifelong.plugins import load_plugin, plugin_names

PACKAGE = "lifelong.expand.families"
AXES = (
    "layers", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_dim", "vocab_size", "experts",
    "experts_per_token", "positions",
)  # fmt: skip

Role = Literal[
    "embedding", "reader", "reader_bias", "writer", "writer_bias", "pre_norm", "pre_norm_bias", "final_norm",
    "final_norm_bias", "post_norm", "stream_norm", "stream_norm_bias", "q_norm", "k_norm", "head", "head_bias",
    "mlm_dense", "mlm_dense_bias", "mlm_norm", "mlm_norm_bias", "router", "router_bias", "task_head", "task_head_bias",
    "kept", "layer_scale",
]  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    """The role of a parameter and the spaces of its rows (`out`) and columns (`into`).

    Attributes:
        role: what it is to the residual stream.
        out: spaces of its rows, in order, where several projections are fused into one.
        into: space of its columns, if it is no vector.
        transposed: stored as [in, out] (GPT-2's Conv1D).
        by_head: rows of fused projections alternate head by head ([heads, 3, head size]).
        by_neuron: rows of fused projections alternate neuron by neuron ([ffn, 2]).
        per_expert: the first dimension counts experts.
        tied_to: the parameter it shares its values with when the configuration ties embeddings.
        slot: `attention` or `ffn` for parameters of a post-norm block.
    """

    role: Role
    out: tuple[str, ...] = ()
    into: str | None = None
    transposed: bool = False
    by_head: bool = False
    by_neuron: bool = False
    per_expert: bool = False
    tied_to: str | None = None
    slot: str = ""


def embedding(space: str) -> Parameter:
    """Rows of `space` written to the stream."""
    return Parameter("embedding", (space,), "stream")


def reader(
    *out: str, transposed: bool = False, by_head: bool = False, by_neuron: bool = False, per_expert: bool = False
) -> Parameter:
    """A projection that reads the (normalised) stream; several spaces where projections are fused."""
    return Parameter("reader", out, "stream", transposed, by_head, by_neuron, per_expert)


def reader_bias(*out: str, by_head: bool = False, by_neuron: bool = False, per_expert: bool = False) -> Parameter:
    """The bias of a reader."""
    return Parameter("reader_bias", out, by_head=by_head, by_neuron=by_neuron, per_expert=per_expert)


def kept(*spaces: str) -> Parameter:
    """What no axis but these changes: states of linear attention, one number a head, ...."""
    return Parameter("kept", spaces)


def layer_scale() -> Parameter:
    """A factor on what a layer hands on; that of an inserted layer is 1."""
    return Parameter("layer_scale")


def writer(into: str, *, transposed: bool = False, per_expert: bool = False) -> Parameter:
    """A projection that writes to the stream (or to the norm in front of it) from `o` or `ffn`."""
    return Parameter("writer", ("stream",), into, transposed, per_expert=per_expert)


def writer_bias(slot: str, *, per_expert: bool = False) -> Parameter:
    """The bias of the writer from `o` or `ffn`."""
    return Parameter("writer_bias", ("stream",), slot=slot, per_expert=per_expert)


def pre_norm(*, bias: bool = False) -> Parameter:
    """Gain (or bias) of a norm whose output is only read."""
    return Parameter("pre_norm_bias" if bias else "pre_norm", ("stream",))


def final_norm(*, bias: bool = False) -> Parameter:
    """Gain (or bias) of the norm in front of the output embedding."""
    return Parameter("final_norm_bias" if bias else "final_norm", ("stream",))


def post_norm() -> Parameter:
    """Gain of a norm between a sublayer and the stream (Gemma 2, OLMo 2)."""
    return Parameter("post_norm", ("stream",))


def stream_norm(slot: str, *, bias: bool = False) -> Parameter:
    """Gain (or bias) of a LayerNorm whose output is the stream: `embedding`, or after `o` or `ffn` (BERT)."""
    return Parameter("stream_norm_bias" if bias else "stream_norm", ("stream",), slot=slot)


def q_norm() -> Parameter:
    """Gain of a norm on queries."""
    return Parameter("q_norm", ("q",))


def k_norm() -> Parameter:
    """Gain of a norm on keys."""
    return Parameter("k_norm", ("k",))


def head(*, tied_to: str) -> Parameter:
    """The output embedding."""
    return Parameter("head", ("vocab",), "stream", tied_to=tied_to)


def head_bias(*, tied_to: str | None = None) -> Parameter:
    """The bias of the output embedding."""
    return Parameter("head_bias", ("vocab",), tied_to=tied_to)


def mlm_dense(*, bias: bool = False) -> Parameter:
    """The dense layer between the last norm and the output embedding (BERT, ModernBERT's decoder)."""
    return Parameter("mlm_dense_bias", ("stream",)) if bias else Parameter("mlm_dense", ("stream",), "stream")


def mlm_norm(*, bias: bool = False) -> Parameter:
    """The norm behind that layer."""
    return Parameter("mlm_norm_bias" if bias else "mlm_norm", ("stream",))


def router(*, bias: bool = False) -> Parameter:
    """The router of a mixture of experts."""
    return Parameter("router_bias", ("experts",)) if bias else Parameter("router", ("experts",), "stream")


def task_head(*, bias: bool = False) -> Parameter:
    """The last layer of a classifier: it reads what the model hands on."""
    return Parameter("task_head_bias", ("stays",)) if bias else Parameter("task_head", ("stays",), "stream")


TASK_HEADS = {
    f"{name}.{kind}": role(bias=kind == "bias")
    for role, names in (
        (task_head, ("score", "classifier", "qa_outputs", "classifier.out_proj", "cls.seq_relationship")),
        (mlm_dense, ("classifier.dense", "pre_classifier", "dense", "{base}.pooler.dense")),
    )
    for name in names
    for kind in ("weight", "bias")
}
"""Heads that transformers puts on the body of any family, and the pooler of BERT; `{base}` is the body's name."""


@dataclass(frozen=True)
class ExpertFiles:
    """Storage of fused experts in a checkpoint, one file entry per expert: `parts` stacked make the rows."""

    parameter: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """One architecture family: a table.

    Attributes:
        name: plugin name.
        model_types: values of `config.model_type` it covers; the first is used for new models.
        parameters: name pattern to role; each parameter of a model must match exactly one.
        axes: axis to configuration key.
        norm: `rms` or `layer`.
        placement: where norms are: `pre`, `sandwich` (pre and post), `post` (OLMo 2), `stream` (BERT: the norm's
            output is the stream), `embedding` (ModernBERT: pre, but a LayerNorm writes the stream at the start).
        gain_offset: a stored gain w means w + offset (Gemma: 1).
        head_norm: norms on queries and keys: `head` (per head), `full` (all heads together) or none.
        head_norm_key: configuration key that says whether a model has those norms, where some have none.
        score_scale: attention divides by the root of the head size, or uses a fixed constant.
        partial_rotary: only the first channels of a head need be rotary.
        interleaved: rotary channels are turned in neighbouring pairs, not in halves.
        scaled_embedding: embeddings are multiplied by the root of the hidden size (Gemma).
        fixed_head: head size is hidden size / heads by construction.
        epsilon_key: configuration key of the epsilon that norms on the stream have.
        objective: `clm` or `mlm`.
        gated: the feed-forward layer is gated.
        defaults: configuration of new models, over the library's.
        follows: configuration keys that must equal an axis, and grow with it.
        initial: configuration keys that equal an axis in a new model, and stay when it grows.
        first_layers: configuration keys that count layers of another kind at the start.
        requires: configuration keys with the only value that is covered.
        axis_requires: the same for the growth of single axes: axis -> keys with the only value that keeps the function.
        refuses: axes that cannot grow, each with the reason.
        position_rows: rows of the position embedding beyond the configured number of positions.
        positions_after_padding: the configured number of positions counts those up to the padding token.
        init_key: configuration key of the scale of random weights.
        experts_family: family of the mixture a dense model can become.
        dense_parts: parameter of the mixture -> parameters of the dense model that make one expert.
        renames: checkpoint name pieces -> names in the model.
        expert_files: fused experts that a checkpoint stores one by one.
        file_renames: parameter name pieces as the model has them -> as its files have them.
        converted_files: files hold tensors that transformers splits or joins when it reads them: it has to read them.
    """

    name: str
    model_types: tuple[str, ...]
    parameters: Mapping[str, Parameter]
    axes: Mapping[str, str]
    norm: Literal["rms", "layer"] = "rms"
    placement: Literal["pre", "sandwich", "post", "stream", "embedding"] = "pre"
    gain_offset: float = 0.0
    head_norm: Literal["none", "head", "full"] = "none"
    head_norm_key: str | None = None
    score_scale: Literal["head_dim", "fixed"] = "head_dim"
    partial_rotary: bool = False
    interleaved: bool = False
    scaled_embedding: bool = False
    fixed_head: bool = False
    epsilon_key: str = "rms_norm_eps"
    objective: Literal["clm", "mlm"] = "clm"
    gated: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)
    follows: Mapping[str, str] = field(default_factory=dict)
    initial: Mapping[str, str] = field(default_factory=dict)
    first_layers: tuple[str, ...] = ()
    requires: Mapping[str, Any] = field(default_factory=dict)
    axis_requires: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)
    position_rows: int = 0
    positions_after_padding: bool = False
    init_key: str = "initializer_range"
    experts_family: str | None = None
    dense_parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    renames: Mapping[str, str] = field(default_factory=dict)
    expert_files: tuple[ExpertFiles, ...] = ()
    file_renames: Mapping[str, str] = field(default_factory=dict)
    converted_files: bool = False

    @cached_property
    def _patterns(self) -> tuple[tuple[str, re.Pattern[str]], ...]:
        return tuple(
            (pattern, re.compile(re.escape(pattern).replace(r"\{layer\}", r"(?P<layer>\d+)") + r"\Z"))
            for pattern in self.parameters
        )

    @property
    def base(self) -> str:
        """Name of the body inside a model with a head."""
        return self.layer_stem.split(".")[0]

    @cached_property
    def task_heads(self) -> Mapping[str, Parameter]:
        """What may stand on the body beside the head of the table, by parameter name."""
        return {name.replace("{base}", self.base): parameter for name, parameter in TASK_HEADS.items()}

    def parameter(self, pattern: str) -> Parameter:
        """The role of an entry that `match` gave."""
        return self.parameters.get(pattern) or self.task_heads[pattern]

    def has(self, role: Role) -> bool:
        """Whether a parameter of the table has this role."""
        return any(parameter.role == role for parameter in self.parameters.values())

    def standard_name(self, parameter: str, prefix: str) -> str:
        """The name in the family's table of a parameter of a model whose body is called `prefix` (empty: bare)."""
        if not prefix:
            return f"{self.base}.{parameter}"
        inner = parameter.removeprefix(f"{prefix}.")
        return parameter if inner == parameter else f"{self.base}.{inner}"

    def own_name(self, name: str, prefix: str) -> str:
        """The inverse of `standard_name`, for a parameter of the body."""
        inner = name.removeprefix(f"{self.base}.")
        return f"{prefix}.{inner}" if prefix else inner

    def match(self, parameter: str) -> tuple[str, int | None]:
        """The entry of the table that a parameter's name matches, and its layer.

        Raises:
            ExpansionError: no entry matches, or several do.
        """
        found = [(pattern, hit) for pattern, regex in self._patterns if (hit := regex.match(parameter))]
        if not found and parameter in self.task_heads:
            return parameter, None
        if len(found) != 1:
            raise ExpansionError(
                f"family {self.name!r}: parameter {parameter!r} is matched by {len(found)} entries of its table, "
                "not by one; the checkpoint is not a standard member of this family (docs/how_to/add_a_family.md)"
            )
        pattern, hit = found[0]
        layer = hit.groupdict().get("layer")
        return pattern, None if layer is None else int(layer)

    @property
    def layer_stem(self) -> str:
        """Prefix of parameter names, in front of `{layer}`."""
        return next(pattern.split("{layer}")[0] for pattern in self.parameters if "{layer}" in pattern)


def family_of(config_or_type: Any) -> Family:
    """The family that covers a configuration, or a value of `config.model_type`.

    Raises:
        UnknownNameError: none does; names those that there are, and how to add one.
        ExpansionError: two families claim it.
    """
    model_type = config_or_type if isinstance(config_or_type, str) else config_or_type.model_type
    families = [load_family(name) for name in plugin_names(PACKAGE)]
    claiming = [family for family in families if model_type in family.model_types]
    if len(claiming) > 1:
        raise ExpansionError(
            f"model_type {model_type!r} is claimed by {len(claiming)} families: "
            f"{', '.join(family.name for family in claiming)}; remove one of these files or its entry point"
        )
    if claiming:
        return claiming[0]
    known = sorted(kind for family in families for kind in family.model_types)
    raise UnknownNameError(
        "family for model_type", model_type, known, "expand (docs/how_to/add_a_family.md says how to add one)"
    )


@cache
def load_family(name: str) -> Family:
    """The family of a plugin file.

    Raises:
        UnknownNameError: no such file.
    """
    family: Family = load_plugin(PACKAGE, name, kind="family").FAMILY
    return family
