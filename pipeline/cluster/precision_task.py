"""Whether actors may encode in bf16: tried by a task with an actor's resources, where they will be.

The driver may have a GPU where they have none, or the reverse; and a network that ends its process
must not end the driver.
"""

import logging
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from pipeline.cluster.encoding_crew import ActorResources
from pipeline.data import Dataset
from pipeline.encoding.precision import Rounding, Unmeasured, try_bf16
from pipeline.errors import PipelineError
from pipeline.latents.identity import EncodeOptions
from pipeline.vae import VAE

_LOG = logging.getLogger(__name__)
_TRIES = 2
"""A first death may be the machine's fault; who dies twice is told."""
_SAY_SECONDS = 30.0
"""As often it is said what is waited for: a node takes minutes to come."""


def try_bf16_on_ray(
    vae: VAE, dataset: Dataset, options: EncodeOptions, resources: ActorResources
) -> Rounding | Unmeasured:
    """`try_bf16` on a worker of the joined cluster; `vae` lies on the CPU.

    A worker that dies leaves it unmeasured.
    """
    task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=0)(_try)
    shared, said = ray.put(vae), ""
    for _ in range(_TRIES):
        try:
            return _wait(task.remote(shared, dataset, options), resources)
        except RayTaskError as error:
            if isinstance(error.cause, PipelineError):
                raise error.cause from None
            raise
        except RayError as error:
            said = str(error).strip().split("\n")[0]
            _LOG.warning("the process that tried bf16 died: %s", said)
    return Unmeasured(f"the process that tried bf16 died, {_TRIES} times: {said}")


def _wait(reference: Any, resources: ActorResources) -> Rounding | Unmeasured:
    while not ray.wait([reference], timeout=_SAY_SECONDS)[0]:
        # No trouble: a cluster that is full, or a large model, takes a while.
        _LOG.info(
            "`--precision auto` still tries a first batch in bf16, or waits for room to: %g CPUs "
            "and %g GPUs. `--precision fp32` does without",
            resources.cpus,
            resources.gpus,
        )
    found: Rounding | Unmeasured = ray.get(reference)
    return found


def _try(vae: VAE, dataset: Dataset, options: EncodeOptions) -> Rounding | Unmeasured:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return try_bf16(vae, dataset, options, device)
