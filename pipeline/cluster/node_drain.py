"""Whether Ray takes away a node of a worker's group: the one look into Ray's private modules."""

import functools
import logging

logger = logging.getLogger(__name__)


def node_is_drained() -> bool:
    """What Ray has told this worker; False, with one warning, where a Ray keeps it elsewhere.

    Ray's public `get_preemption_info` is a barrier of all workers and takes 2.5 ms a step; this
    reads a field, and the loop's own message tells the others.
    """
    try:
        from ray.train.v2._internal.execution.context import get_train_context

        return get_train_context().preemption_context.preemption_info is not None
    except (ImportError, AttributeError) as error:
        _warn(str(error))
        return False


@functools.cache  # Asked at every step; said once.
def _warn(error: str) -> None:
    logger.warning(
        "this version of Ray does not say where this program looks that a node is taken away (%s): "
        "the run goes on from its last checkpoint when the node is gone, not before. "
        "constraints.txt names the version that was tested.",
        error,
    )
