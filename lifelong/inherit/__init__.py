"""Knowledge inheritance: the loss, its teachers and schedules."""

from lifelong.inherit.head import Inheritance, loss_head, predicted_nats
from lifelong.inherit.loss import CachedTarget, OnlineTarget, ki_loss

__all__ = ["CachedTarget", "Inheritance", "OnlineTarget", "ki_loss", "loss_head", "predicted_nats"]
