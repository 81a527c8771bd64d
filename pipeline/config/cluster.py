"""Which machines of a cluster do the work; no part of any key."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from pipeline.config.load import Config


class RayCluster(Config):
    """A Ray cluster: every node asks the teacher and judges, and writes to the store itself."""

    type: Literal["ray"] = "ray"
    """Ray, started on each node by `ray start`. All nodes see runtime.traces at the same path and
    have the same limbeck."""
    address: str = "auto"
    """HOST:PORT of the head, as `ray start --head` prints it; auto: the cluster of this machine."""
    servers: int | None = Field(default=None, ge=1)
    """vLLM teachers at once, each on GPUs of its own; unset: as many as the cluster's GPUs hold.
    Set, they are asked for even if no GPU is there yet, so that an autoscaler brings nodes."""
    patience: float = Field(default=600.0, ge=0)
    """Seconds without any node that can work until the run gives up."""

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        if address != "auto" and not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}", address):
            raise ValueError("give HOST:PORT of the head, as `ray start --head` prints it, or auto")
        return address
