"""Continual pre-training of language models: streams, exact growth, inheritance, forgetting reports.

The names below are the public API. Each is imported when it is first used: `import lifelong` loads no other library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lifelong.exports import lazy_exports

if TYPE_CHECKING:
    from lifelong.errors import InputError, LifelongError
    from lifelong.evaluate import evaluate
    from lifelong.expand.apply import expand_model
    from lifelong.expand.attached import train_only_new
    from lifelong.expand.checkpoint import expand_checkpoint, explain_expansion
    from lifelong.expand.mapping import ExpansionMap
    from lifelong.ledger.folder import RunFolder
    from lifelong.ledger.history import read_run
    from lifelong.ledger.ledger import check_run
    from lifelong.lm.loss import ki_loss
    from lifelong.lm.targets import CachedTarget, OnlineTarget
    from lifelong.methods._method import Method, StageContext
    from lifelong.pipeline.loop import extend_run, run_recipe
    from lifelong.plan.stages import RunPlan, plan_recipe
    from lifelong.recipe.files import load_recipe, parse_recipe
    from lifelong.recipe.recipe import Recipe
    from lifelong.records import DomainLoss, ExpansionReport, LossMatrix, RunHistory, RunObserver, RunResult
    from lifelong.stream.cards.domain import Domain, load_domain

__version__ = "0.1.0"

__all__ = [
    "CachedTarget", "Domain", "DomainLoss", "ExpansionMap", "ExpansionReport", "InputError", "LifelongError",
    "LossMatrix", "Method", "OnlineTarget", "Recipe", "RunFolder", "RunHistory", "RunObserver", "RunPlan",
    "RunResult", "StageContext", "__version__", "check_run", "evaluate", "expand_checkpoint", "expand_model",
    "explain_expansion", "extend_run", "ki_loss", "load_domain", "load_recipe", "parse_recipe", "plan_recipe",
    "read_run", "run_recipe", "train_only_new",
]  # fmt: skip

_NAMES = {
    "errors": ("InputError", "LifelongError"),
    "evaluate": ("evaluate",),
    "expand.apply": ("expand_model",),
    "expand.attached": ("train_only_new",),
    "expand.checkpoint": ("expand_checkpoint", "explain_expansion"),
    "expand.mapping": ("ExpansionMap",),
    "ledger.folder": ("RunFolder",),
    "ledger.history": ("read_run",),
    "ledger.ledger": ("check_run",),
    "lm.loss": ("ki_loss",),
    "lm.targets": ("CachedTarget", "OnlineTarget"),
    "methods._method": ("Method", "StageContext"),
    "pipeline.loop": ("extend_run", "run_recipe"),
    "plan.stages": ("RunPlan", "plan_recipe"),
    "recipe.files": ("load_recipe", "parse_recipe"),
    "recipe.recipe": ("Recipe",),
    "records": ("DomainLoss", "ExpansionReport", "LossMatrix", "RunHistory", "RunObserver", "RunResult"),
    "stream.cards.domain": ("Domain", "load_domain"),
}
if not TYPE_CHECKING:  # with a __getattr__ type checkers would take every name
    __getattr__, __dir__ = lazy_exports(
        __name__, {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names}
    )
