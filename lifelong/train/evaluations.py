"""Figures that belong to no training step, in the trackers that `train.report_to` names.

A phase of training has a Trainer of its own, whose trackers end with it. What is measured between phases goes through
the same integrations of transformers, with tokens of the stream as the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifelong import distributed
from lifelong.errors import InputError
from lifelong.ledger.folder import RunFolder


class EvaluationTrackers:
    """Trackers of a recipe's `train:` section; nothing is loaded before the first figure.

    Args:
        run: the run folder; trackers that write files put them into `trackers/evaluation/`.
        train: the section.
    """

    def __init__(self, run: RunFolder, train: Mapping[str, Any]) -> None:
        named = train.get("report_to")
        self.names = [name for name in (named if isinstance(named, list) else [named]) if name not in (None, "none")]
        self.folder, self.train = run.evaluations, train
        self._open: tuple[list[Any], Any, Any, Any] | None = None

    def log(self, figures: Mapping[str, float | None], tokens: int) -> None:
        """Log figures by name at a number of tokens, in the main process."""
        known = {name: float(value) for name, value in figures.items() if value is not None}
        if not self.names or not known or not distributed.is_main_process():
            return
        try:
            callbacks, arguments, state, control = self._open = self._open or self._opened()
            state.global_step = tokens
            for callback in callbacks:
                callback.on_log(arguments, state, control, model=None, logs=dict(known))
        except Exception as error:  # of a tracker: no key, no network, a project that is not there
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise InputError(f"train.report_to: {', '.join(self.names)} cannot be used: {reason}") from error

    def close(self) -> None:
        """Have every tracker write what it holds."""
        if self._open is not None:
            callbacks, arguments, state, control = self._open
            for callback in callbacks:
                callback.on_train_end(arguments, state, control, model=None)
            self._open = None

    def _opened(self) -> tuple[list[Any], Any, Any, Any]:
        from transformers import TrainerControl, TrainerState
        from transformers.integrations import get_reporting_integration_callbacks

        from lifelong.train.arguments import training_arguments

        section = {
            "report_to": self.names,
            **{key: self.train[key] for key in ("run_name", "project", "use_cpu") if key in self.train},
        }
        arguments = training_arguments(section, output_dir=self.folder, max_steps=1, seed=0)
        state = TrainerState()
        callbacks = [kind() for kind in get_reporting_integration_callbacks(self.names)]
        for callback in callbacks:
            if getattr(callback, "logging_dir", "") is None:
                callback.logging_dir = str(self.folder)
            callback.on_train_begin(arguments, state, TrainerControl(), model=None)
        return callbacks, arguments, state, TrainerControl()
