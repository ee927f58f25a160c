"""Federated training: one silo per domain, over Flower; nothing else in the package imports it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lifelong.exports import lazy_exports

if TYPE_CHECKING:
    from lifelong.federation.server import FederationPlan, client_app, server_app, simulate_federation

__all__ = ["FederationPlan", "client_app", "server_app", "simulate_federation"]
if not TYPE_CHECKING:  # Flower's processes import the apps by this name
    __getattr__, __dir__ = lazy_exports(__name__, dict.fromkeys(__all__, "lifelong.federation.server"))
