"""Knowledge inheritance: the loss, its teachers and schedules."""

from typing import TYPE_CHECKING

from lifelong.exports import lazy_exports

if TYPE_CHECKING:
    from lifelong.lm.head import Inheritance as Inheritance
    from lifelong.lm.head import loss_head as loss_head
    from lifelong.lm.head import predicted_nats as predicted_nats
    from lifelong.lm.loss import CachedTarget as CachedTarget
    from lifelong.lm.loss import OnlineTarget as OnlineTarget
    from lifelong.lm.loss import ki_loss as ki_loss

# recipes are read without torch: names load when they are first used
_MODULES = {
    **dict.fromkeys(("Inheritance", "loss_head", "predicted_nats"), "lifelong.lm.head"),
    **dict.fromkeys(("CachedTarget", "OnlineTarget", "ki_loss"), "lifelong.lm.loss"),
}
__all__ = ["CachedTarget", "Inheritance", "OnlineTarget", "ki_loss", "loss_head", "predicted_nats"]
__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
