"""Methods by name, with their settings checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifelong.methods._method import AVALANCHE, Method


def make_methods(sections: list[tuple[str, Mapping[str, Any]]]) -> list[Method]:
    """The methods of a recipe, in order; those with strength 0 are left out.

    Args:
        sections: name of the method, or `avalanche:` and the name of an Avalanche plugin, and its settings.

    Raises:
        InputError: unknown name or setting, or a value that the method refuses.
    """
    from lifelong.errors import InputError

    made = [(name, _make_method(name, settings)) for name, settings in sections]
    active = [(name, method) for name, method in made if method.strength != 0]
    for name, method in active:
        if method.exclusive and len(active) > 1:
            others = ", ".join(other for other, _ in active if other != name) or name
            raise InputError(f"methods.{name}: trains parameters of its own and cannot be combined with {others}")
    return [method for _, method in active]


def _make_method(name: str, settings: Mapping[str, Any]) -> Method:
    import dataclasses

    from lifelong.errors import InputError, did_you_mean
    from lifelong.plugins import load_plugin

    if name.startswith(AVALANCHE):
        from lifelong.methods import _avalanche

        return _avalanche.make(name[len(AVALANCHE) :], settings)
    plugin = load_plugin("lifelong.methods", name, kind="method", where="methods").Plugin
    fields = {item.name: item for item in dataclasses.fields(plugin) if item.init}
    for key, value in settings.items():
        if key not in fields:
            raise InputError(f"methods.{name}.{key}: unknown setting{did_you_mean(key, list(fields))}")
        default = fields[key].default
        if isinstance(value, list) and fields[key].metadata.get("list"):
            continue  # of words; the method says which
        if not _is_like(value, default):
            kind = {bool: "true or false", int: "a whole number", float: "a number"}.get(type(default), "a text")
            raise InputError(f"methods.{name}.{key}: must be {kind} ({default!r} by default), not {value!r}")
    made: Method = plugin(**settings)
    if not made.strength >= 0:
        raise InputError(f"methods.{name}.strength: must be at least 0, not {made.strength!r}")
    if getattr(made, "samples", 1) < 1:
        raise InputError(f"methods.{name}.samples: must be at least 1, not {settings['samples']!r}")
    return made


def _is_like(value: object, default: object) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


def check_method(method: Method, name: str, *, memory: bool, sharded: bool, keeps_pre_decay: bool = False) -> None:
    """Refuse a method that cannot be right where it is asked for.

    Args:
        method: as made from the recipe.
        name: in the recipe.
        memory: whether the run keeps a replay memory.
        sharded: whether parameters are sharded over devices.
        keeps_pre_decay: whether weights are kept in the middle of a stage.

    Raises:
        InputError: it needs a memory, or whole parameters, or has no stock model to keep.
    """
    from lifelong.errors import InputError

    if method.needs_memory and not memory:
        raise InputError(
            f"methods.{name}: needs a memory of earlier domains; add replay: {{memory_tokens: 200k, share: 0}} (with "
            "share 0 the memory is kept and not trained on)"
        )
    if sharded and not method.supports_sharding:
        raise InputError(
            f"methods.{name}: reads or changes whole parameters, but this run shards them over devices (FSDP or "
            "ZeRO-3); run it with plain data parallelism instead, or without the method"
        )
    if keeps_pre_decay and method.adds_parameters:
        raise InputError(
            f"methods.{name}: adds parameters to the model while a stage is trained, but lr.policy infinite keeps the "
            "model in the middle of it; choose another policy, for example wsd"
        )
