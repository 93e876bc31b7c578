"""Why a start of a run ends: one word, decided by the loop and told to all who ask."""

from typing import Literal

StopReason = Literal["stopped", "superseded", "drained"]
Reason = Literal["done"] | StopReason
"""done: the last step was made, or `patience` is at an end; the run is finished.
stopped: a STOP object was found; the same command goes on.
superseded: another start owns the run; this one saves and registers nothing any more.
drained: a node is being taken away; the same start goes on elsewhere."""
