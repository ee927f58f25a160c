"""Knowledge inheritance: the loss, its teachers and schedules."""

from lifelong.lm.head import Inheritance, loss_head, predicted_nats
from lifelong.lm.loss import CachedTarget, OnlineTarget, ki_loss

__all__ = ["CachedTarget", "Inheritance", "OnlineTarget", "ki_loss", "loss_head", "predicted_nats"]
