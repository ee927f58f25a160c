"""Avalanche's own plugins as methods: `avalanche:EWCPlugin` in a recipe, unmodified, with Avalanche's own settings.

Avalanche's training loop has no accumulation, clipping, mixed precision or distribution, so its plugins are driven from
ours, through the callbacks that they have in public. A plugin is handed tensors: x is `[B, 4, T]` (ids, labels,
positions, segments), y the labels `[B, T]`; the model it sees makes logits `[N, V]` of the N predicted tokens of x.
Its penalty enters the loss of the whole optimizer step, its gradients are taken while no others are there, and what it
draws at random is a function of the step, so that it does not depend on accumulation and is resumed to the same bits.

Shape suffixes: B rows, T tokens, N predicted tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lifelong.errors import InputError, UnknownNameError, did_you_mean
from lifelong.lm.objective import objective_of
from lifelong.lm.packed import packed_inputs, unpacked
from lifelong.methods._method import Batch, Method, StageContext

CHANNELS = ("input_ids", "labels", "position_ids", "segment_ids")
OUR_SETTINGS = {"strength": 1.0, "rows": 256}
DRIVEN = {
    "before_training_exp", "after_training_exp", "before_training_iteration", "after_training_iteration",
    "before_backward", "after_backward", "before_update", "after_update",
}  # fmt: skip
BROKEN = {
    "SynapticIntelligencePlugin": "does nothing on a CPU: its copies of the weights share their memory (Avalanche "
    "0.6.0); use the method si",
    "LwFPlugin": "asks for the outputs of single heads of a classifier; use `inherit: {teacher: previous}`",
    "ReplayPlugin": "replaces the data loader of Avalanche's own training loop; use `replay:`",
    "GDumbPlugin": "retrains on its memory at the end; use the recipe joint",
    "GenerativeReplayPlugin": "needs a generator of images; use `replay:`",
    "MIRPlugin": "adds rows to a batch of Avalanche's own training loop; use `replay:`",
    "RARPlugin": "adds rows to a batch of Avalanche's own training loop; use `replay:`",
    "BiCPlugin": "corrects the classes of a classifier; a language model has none that are new",
    "CWRStarPlugin": "works on the classes of a classifier; a language model has none that are new",
    "FromScratchTrainingPlugin": "resets the model before every stage, which a stage must not do",
}
KEEPS_SHAPES = ("EWCPlugin", "MASPlugin")


def make(name: str, settings: Mapping[str, Any]) -> Method:
    """The method around a plugin.

    Args:
        name: of the class in `avalanche.training.plugins`.
        settings: of the plugin, by its own names; and `strength`, which multiplies what it adds, and `rows` of the
            stage's text that it is shown as the experience.

    Raises:
        InputError: no such plugin, one that cannot work here, or a wrong setting.
    """
    if name in BROKEN:
        raise InputError(f"methods.avalanche:{name}: {BROKEN[name]}")
    from lifelong.adapters import avalanche as library

    plugins = library.plugin_classes()
    if name not in plugins:
        raise UnknownNameError("Avalanche plugin", name, plugins, "methods")
    own = {key: settings.get(key, default) for key, default in OUR_SETTINGS.items()}
    for key, value in own.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or (key == "rows" and value < 1):
            raise InputError(f"methods.avalanche:{name}.{key}: must be a positive number, not {value!r}")
    given = {key: value for key, value in settings.items() if key not in own}
    _check(name, plugins[name], given)
    return AvalancheMethod(
        strength=own["strength"], name=name, plugin=_constructed(name, plugins[name], given), rows=int(own["rows"])
    )


def _check(name: str, plugin: type, settings: Mapping[str, Any]) -> None:
    parameters = inspect.signature(plugin).parameters
    for key in settings:
        if key not in parameters:
            raise InputError(f"methods.avalanche:{name}.{key}: unknown setting{did_you_mean(key, list(parameters))}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in settings and parameter.kind is not parameter.VAR_KEYWORD:
            raise InputError(f"methods.avalanche:{name}.{key}: is missing; its settings: {', '.join(parameters)}")
    asked = {hook for hook in dir(plugin) if hook.startswith(("before_", "after_")) and _overrides(plugin, hook)}
    unmet = sorted(hook for hook in asked - DRIVEN if "eval" not in hook)
    if unmet:
        raise InputError(
            f"methods.avalanche:{name}: works through {', '.join(unmet)}, which only Avalanche's own training loop "
            f"has; plugins that use no others than {', '.join(sorted(DRIVEN))} can be named"
        )


def _overrides(plugin: type, hook: str) -> bool:
    owner = next((base for base in plugin.__mro__ if hook in vars(base)), None)
    return owner is not None and owner.__name__ not in ("BasePlugin", "BaseSGDPlugin", "SupervisedPlugin")


def _constructed(name: str, plugin: type, settings: Mapping[str, Any]) -> Any:
    if name == "GEMPlugin" and importlib_spec("quadprog") is None:
        raise InputError(
            "methods.avalanche:GEMPlugin: needs quadprog: pip install 'lifelong[avalanche-gem]'; the method gem does "
            "without"
        )
    try:
        return plugin(**settings)
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(f"methods.avalanche:{name}: {' '.join(str(error).split())}") from None


def importlib_spec(module: str) -> Any:
    """Spec of a module; None where it is not installed."""
    from importlib.util import find_spec

    return find_spec(module)


class TokenClassifier(nn.Module):
    """A language model as a plugin sees it: from x `[B, 4, T]` to logits `[N, V]` of the predicted tokens."""

    def __init__(self, model: PreTrainedModel, objective: str) -> None:
        super().__init__()
        self.language_model, self.objective = model, objective

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Logits of the predicted tokens, in the order of their rows."""
        batch = dict(zip(CHANNELS, x_BCT.unbind(1), strict=True))
        inputs = packed_inputs(self.language_model, batch, self.objective)
        logits_BTV = unpacked(self.language_model(**inputs).logits, batch["input_ids"].shape)
        kind = objective_of(self.objective)
        chosen: Tensor = kind.predicting(logits_BTV)[kind.predicted(batch["labels"]) != -100]
        return chosen

    def criterion(self, logits_NV: Tensor, labels_BT: Tensor) -> Tensor:
        """Mean cross-entropy of the predicted tokens."""
        labels_BT = objective_of(self.objective).predicted(labels_BT)
        return nn.functional.cross_entropy(logits_NV.float(), labels_BT[labels_BT != -100])


class Strategy(SimpleNamespace):
    """The attributes that a plugin may read from its strategy; any other raises an error that says so."""

    def __getattr__(self, name: str) -> Any:
        raise InputError(f"an Avalanche plugin asks its strategy for {name!r}, which the bridge does not have")


@dataclass
class AvalancheMethod(Method):
    """An unmodified plugin, and the strategy it believes to be part of."""

    term_of_batch: ClassVar[bool] = True

    name: str = ""
    plugin: Any = None
    rows: int = 256
    context: StageContext | None = field(default=None, init=False)
    strategy: Any = field(default=None, init=False)

    def begin_stage(self, context: StageContext) -> None:
        """Show the plugin the experience and the model."""
        from lifelong.adapters import avalanche as library

        if context.mapping is not None and self.name in KEEPS_SHAPES and context.stage_index > 0:
            raise InputError(
                f"methods.avalanche:{self.name}: does not support growth: its anchors have the old shapes; use "
                f"{'ewc' if self.name == 'EWCPlugin' else 'mas'}, which moves them, or take `expand:` out of stage "
                f"{context.stage_index}"
            )
        self.context = context
        examples = [as_example(batch) for batch in context.own_batches(self.rows)]
        model = TokenClassifier(context.model, context.objective)
        self.strategy = Strategy(
            model=model,
            _criterion=model.criterion,
            optimizer=None,
            device=context.model.device,
            train_mb_size=1,
            experience=SimpleNamespace(
                dataset=library.example_dataset(examples), current_experience=context.stage_index, task_labels=[0]
            ),
            clock=SimpleNamespace(train_exp_counter=context.stage_index, train_iterations=0),
            plugins=[self.plugin],
            is_training=True,
            loss=torch.zeros(()),
            mb_output=None,
        )
        self._call("before_training_exp")

    def _call(self, hook: str) -> None:
        getattr(self.plugin, hook)(self.strategy)

    def begin_step(self, model: PreTrainedModel, step: int) -> None:
        """The plugin's own passes, and its draws, as a function of the step."""
        from lifelong.adapters import avalanche as library

        assert self.context is not None, "a stage has begun"
        self.strategy.optimizer = self.optimizer
        self.strategy.clock.train_iterations = step
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.context.seed * 1_000_003 + step)
            state = random.getstate()
            random.seed(self.context.seed * 1_000_003 + step)
            library.restart_memory(self.plugin)
            try:
                self._call("before_training_iteration")
            finally:
                random.setstate(state)
        model.zero_grad(set_to_none=True)

    def loss_term(self, model: PreTrainedModel) -> Tensor | None:
        """Term that the plugin adds to the loss; it is shown a loss of 1, as one plugin refuses a loss of 0."""
        one = torch.ones((), device=model.device)
        self.strategy.loss = one.clone()
        self._call("before_backward")
        added = self.strategy.loss - one
        return added * self.strength if added.requires_grad else None

    def edit_gradients(self, model: PreTrainedModel) -> None:
        """The plugin turns the gradients of the whole step."""
        before = [] if self.strength == 1 else [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        self._call("after_backward")
        self._call("before_update")
        for parameter, old in zip(model.parameters(), before, strict=False):
            if old is not None and parameter.grad is not None:
                parameter.grad.copy_(torch.lerp(old, parameter.grad, self.strength))

    def end_step(self, model: PreTrainedModel) -> None:
        """The weights have moved."""
        del model
        self._call("after_update")
        self._call("after_training_iteration")

    def end_stage(self, context: StageContext) -> None:
        """The plugin looks back at the experience."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            state = random.getstate()
            random.seed(context.seed)
            try:
                self._call("after_training_exp")
            finally:
                random.setstate(state)
        context.model.zero_grad(set_to_none=True)
        self.context, self.strategy = None, None

    def state_dict(self) -> dict[str, Tensor]:
        """Everything the plugin keeps, as plain values and tensors."""
        from lifelong.adapters import avalanche as library

        return library.plugin_state(self.plugin)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put it back."""
        from lifelong.adapters import avalanche as library

        if state:
            library.load_plugin_state(self.plugin, state)


def as_example(batch: Batch) -> tuple[Tensor, Tensor]:
    """X `[4, T]` and y `[T]` of a batch of one row."""
    return torch.stack([batch[name][0] for name in CHANNELS]).cpu(), batch["labels"][0].cpu()
