"""Configurations of randomly initialised models."""

from __future__ import annotations

from typing import Any

from lifelong.errors import ExpansionError
from lifelong.expand.family import AXES, load_family
from lifelong.expand.shape import check_sizes

DEFAULT_SHAPE = {"layers": 4, "hidden_size": 128, "heads": 4}
GATED_STEP = 32


def new_config(family_name: str, *, vocab_size: int, max_positions: int, **settings: Any) -> Any:
    """Configuration of a randomly initialised model.

    Args:
        family_name: a family.
        vocab_size: rows of the embedding.
        max_positions: longest sequence.
        settings: sizes by axis name, token ids, and any further key of the configuration; None means not named.

    Raises:
        UnknownNameError: no such family.
        ExpansionError: sizes contradict each other.
    """
    import transformers

    family = load_family(family_name)
    sizes = {axis: settings.pop(axis) for axis in AXES if settings.get(axis) is not None}
    settings = {key: value for key, value in settings.items() if value is not None and key not in AXES}
    for axis, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ExpansionError(f"{axis}: a whole number of 1 or more, not {size!r}")
    check_sizes(sizes)
    shape = DEFAULT_SHAPE | sizes
    hidden, heads = shape["hidden_size"], shape["heads"]
    if hidden % heads and (family.fixed_head or "head_dim" not in sizes):
        raise ExpansionError(
            f"hidden_size: {hidden} is not a multiple of {heads} heads; "
            + ("choose other sizes" if family.fixed_head else "name head_dim, or another number of heads")
        )
    shape.setdefault("kv_heads", heads)
    shape.setdefault("head_dim", hidden // heads)
    if heads % shape["kv_heads"]:
        raise ExpansionError(f"kv_heads: {shape['kv_heads']} key-value heads do not divide {heads} heads")
    if family.fixed_head and shape["head_dim"] != hidden // heads:
        raise ExpansionError(f"{family.name} has heads x head_dim = hidden_size")
    if family.fixed_head and "kv_heads" not in family.axes and shape["kv_heads"] != heads:
        raise ExpansionError(f"{family.name} has one key-value head per query head")
    # two thirds of four times the width, in steps of 32: as many weights as an ungated layer of 4x
    gated = -(-8 * hidden // 3 // GATED_STEP) * GATED_STEP
    shape.setdefault("intermediate_size", gated if family.gated else 4 * hidden)
    special = {key: settings.pop(key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    shape |= {"vocab_size": vocab_size, "positions": max_positions}
    if family.positions_after_padding:
        shape["positions"] = max_positions + (special["pad_token_id"] or 0) + 1
    values = {family.axes[axis]: size for axis, size in shape.items() if axis in family.axes}
    values |= {key: shape[axis] for key, axis in (*family.follows.items(), *family.initial.items())}
    named = {**family.axes, "layers": "num_hidden_layers"}.items()
    check_sizes({axis: settings[key] for axis, key in named if isinstance(settings.get(key), int)})
    faults = []
    for absent in (None, 0):  # None, for transformers' default may lie beyond a small vocabulary; some want a number
        ids = {key: absent if value is None else value for key, value in special.items()}
        try:
            return transformers.AutoConfig.for_model(
                family.model_types[0], **{**family.defaults, **ids, **values, **settings}
            )
        except Exception as error:
            faults.append(" ".join(str(error).split()).rsplit("ValueError: ", 1)[-1])
    raise ExpansionError(f"transformers refuses the configuration: {faults[0][:300]}")
