"""An entry of `methods:` in a recipe."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from lifelong.errors import UnknownNameError
from lifelong.plugins import plugin_names


class MethodSection(BaseModel):
    """A continual-learning method by name, with its own settings."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @model_validator(mode="after")
    def _known(self) -> MethodSection:
        if self.name.startswith("avalanche:"):
            return self
        known = plugin_names("lifelong.methods")
        if self.name.replace("_", "-") not in known:
            raise ValueError(str(UnknownNameError("method", self.name, known)))
        return self

    def settings(self) -> dict[str, Any]:
        """The method's own settings."""
        return dict(self.model_extra or {})
