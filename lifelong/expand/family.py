"""What the growth of an architecture needs to know: the role of every axis of every parameter. No logic here.

A role is `axis.part`: what the rows or columns of a tensor are, and on which side of the function they stand.

| axis    | parts | meaning |
|---------|-------|---------|
| stream  | write, read, norm, final_norm | residual stream: written to, read from, gain of a norm on it |
| heads   | project, out | query heads x head size |
| kv      | project | key and value heads x head size |
| ffn     | project, out | neurons of the feed-forward layer |
| vocab   | token | vocabulary |
| head    | keep | one head's channels, shared by all heads |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lifelong.errors import ExpansionError, UnknownNameError
from lifelong.plugins import load_plugin, plugin_names

PACKAGE = "lifelong.expand.families"
AXES = ("layers", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_dim", "vocab_size")


@dataclass(frozen=True)
class TensorRole:
    """Parameter names that match `pattern` (a layer's number is `{layer}`) have these roles."""

    pattern: str
    rows: str
    columns: str | None = None

    def regex(self) -> re.Pattern[str]:
        """The pattern with the layer's number as a group."""
        return re.compile(re.escape(self.pattern).replace(r"\{layer\}", r"(?P<layer>\d+)") + r"\Z")


@dataclass(frozen=True)
class Family:
    """One architecture family.

    Attributes:
        name: plugin name.
        model_types: `config.model_type` values it covers.
        tensors: role of every parameter; each must match exactly one entry.
        config_names: axis to configuration attribute.
        defaults: configuration values of models that start from random weights.
    """

    name: str
    model_types: tuple[str, ...]
    tensors: tuple[TensorRole, ...]
    config_names: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def role_of(self, parameter: str) -> tuple[TensorRole, int | None]:
        """Role and layer number of a parameter.

        Raises:
            ExpansionError: no entry matches, or several do.
        """
        found = [(role, match) for role in self.tensors if (match := role.regex().match(parameter))]
        if len(found) != 1:
            raise ExpansionError(
                f"family {self.name!r}: parameter {parameter!r} is matched by {len(found)} entries of its table, "
                "not by one; the checkpoint is no plain member of this family"
            )
        role, match = found[0]
        layer = match.groupdict().get("layer")
        return role, None if layer is None else int(layer)


ROTARY_CONFIG = {
    "layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
}


def gated_decoder(*, attention_bias: bool = False, head_norms: bool = False) -> tuple[TensorRole, ...]:
    """Pre-norm RMSNorm decoder with rotary grouped-query attention and a gated feed-forward layer."""
    block = "model.layers.{layer}."
    roles = [
        TensorRole("model.embed_tokens.weight", "vocab.token", "stream.write"),
        TensorRole(block + "input_layernorm.weight", "stream.norm"),
        TensorRole(block + "self_attn.q_proj.weight", "heads.project", "stream.read"),
        TensorRole(block + "self_attn.k_proj.weight", "kv.project", "stream.read"),
        TensorRole(block + "self_attn.v_proj.weight", "kv.project", "stream.read"),
        TensorRole(block + "self_attn.o_proj.weight", "stream.write", "heads.out"),
        TensorRole(block + "post_attention_layernorm.weight", "stream.norm"),
        TensorRole(block + "mlp.gate_proj.weight", "ffn.project", "stream.read"),
        TensorRole(block + "mlp.up_proj.weight", "ffn.project", "stream.read"),
        TensorRole(block + "mlp.down_proj.weight", "stream.write", "ffn.out"),
        TensorRole("model.norm.weight", "stream.final_norm"),
        TensorRole("lm_head.weight", "vocab.token", "stream.read"),
    ]
    if attention_bias:
        roles += [
            TensorRole(block + "self_attn.q_proj.bias", "heads.project"),
            TensorRole(block + "self_attn.k_proj.bias", "kv.project"),
            TensorRole(block + "self_attn.v_proj.bias", "kv.project"),
        ]
    if head_norms:
        roles += [
            TensorRole(block + "self_attn.q_norm.weight", "head.keep"),
            TensorRole(block + "self_attn.k_norm.weight", "head.keep"),
        ]
    return tuple(roles)


def family_of(model_type: str) -> Family:
    """The family that covers a `config.model_type`.

    Raises:
        UnknownNameError: none does; names those that there are.
    """
    families = [load_family(name) for name in plugin_names(PACKAGE)]
    for family in families:
        if model_type in family.model_types:
            return family
    known = sorted(kind for family in families for kind in family.model_types)
    raise UnknownNameError("family for model_type", model_type, known, "expand (docs/how_to/add_a_family.md)")


def load_family(name: str) -> Family:
    """The family of a plugin file.

    Raises:
        UnknownNameError: there is no such file.
    """
    family: Family = load_plugin(PACKAGE, name, kind="family").FAMILY
    return family
