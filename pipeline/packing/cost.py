"""How many images, how many bytes and how long: `jobs.pack --dry-run`, from a short probe."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline import storage
from pipeline.config import PackConfig
from pipeline.errors import SampleError
from pipeline.packing.inspect_image import inspect_image
from pipeline.packing.inventory import open_inventory
from pipeline.packing.ledger import ledger_rows, read_state
from pipeline.packing.pack import make_plan, options_of
from pipeline.packing.plan import Plan
from pipeline.sources.tables import read_table_row

PROBE_SECONDS = 5.0
"""Hundreds of images even of the large ones; the inputs are like each other."""


@dataclass(frozen=True)
class Estimate:
    """What a pack would do: inputs not yet packed, their bytes, seconds on this machine."""

    images: int
    bytes: int
    seconds: float
    probed: int
    rejected_in_probe: int
    reasons: Mapping[str, int]
    others: Mapping[str, int]
    """Files that are no images, by suffix."""

    @property
    def summary(self) -> str:
        """One line for a person."""
        return (
            f"{self.images} inputs, {self.bytes / 2**20:.1f} MiB, about {self.seconds:.0f} s; "
            f"{self.rejected_in_probe} of {self.probed} probed would be rejected."
        )


def probe(config: PackConfig, probe_seconds: float = PROBE_SECONDS) -> Estimate:
    """Inspects the first inputs, in packing order, for `probe_seconds`; writes nothing."""
    output = storage.absolute(config.output)
    state = read_state(output)
    with open_inventory() as inventory:
        inventory.ledger.put(ledger_rows(output, state))
        return _probe(config, make_plan(config, state, inventory, 1), probe_seconds)


def _probe(config: PackConfig, plan: Plan, probe_seconds: float) -> Estimate:
    reasons: Counter[str] = Counter()
    start = time.monotonic()
    probed = 0
    for file in plan.inputs():
        if file.status:
            continue
        try:
            if file.row_group:
                data = read_table_row(file, config.image_column, config.below).data
            else:
                data = file.read()
            hashlib.sha256(data).hexdigest()
            inspect_image(data, options_of(config))
        except SampleError as error:
            reasons[error.reason] += 1
        probed += 1
        if time.monotonic() - start > probe_seconds:
            break
    cores = config.workers or len(os.sched_getaffinity(0))
    seconds = (time.monotonic() - start) / max(probed, 1) * plan.files / cores
    return Estimate(
        images=plan.files,
        bytes=plan.size,
        seconds=round(seconds, 3),
        probed=probed,
        rejected_in_probe=sum(reasons.values()),
        reasons=dict(reasons),
        others=dict(plan.others),
    )
