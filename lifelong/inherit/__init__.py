"""Knowledge inheritance: the loss, its teachers and schedules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lifelong.exports import lazy_exports

if TYPE_CHECKING:
    from lifelong.lm.head import Inheritance, loss_head, predicted_nats
    from lifelong.lm.loss import ki_loss
    from lifelong.lm.targets import CachedTarget, OnlineTarget

__all__ = ["CachedTarget", "Inheritance", "OnlineTarget", "ki_loss", "loss_head", "predicted_nats"]
__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        **dict.fromkeys(("Inheritance", "loss_head", "predicted_nats"), "lifelong.lm.head"),
        **dict.fromkeys(("CachedTarget", "OnlineTarget"), "lifelong.lm.targets"),
        "ki_loss": "lifelong.lm.loss",
    },
)
