"""What a lost worker's error says in one line."""

from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, RayTaskError

from pipeline.cluster.encoding_crew import _one_line


def test_of_a_failed_task_the_tracebacks_last_line_is_told() -> None:
    trace = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: no room'
    assert _one_line(RayTaskError("encode", trace, ValueError("no room"))) == "ValueError: no room"
    assert _one_line(RayTaskError("encode", "", ValueError())) == ""


def test_of_a_dead_actor_the_first_line_is_told() -> None:
    context = ActorDiedErrorContext(actor_id=bytes(16), error_message="exit code 9")
    found = _one_line(ActorDiedError(context))
    assert found == "The actor died unexpectedly before finishing this task."
