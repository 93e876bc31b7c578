"""What a job prints is shown once, and its result is found among its last lines."""

import pytest

from pipeline.errors import UnreachableError
from pipeline.submission.job_output import result_in
from pipeline.submission.log_tail import LogTail
from pipeline.submission.place import Job, Output
from pipeline.submission.ray_jobs import RayJobs


class Printed(RayJobs):
    """A place whose job has printed so much by now."""

    def __init__(self, *outputs: Output | Exception) -> None:
        super().__init__("http://127.0.0.1:9")
        self.outputs = list(outputs)

    def output(self, job: Job) -> Output:
        now = self.outputs.pop(0)
        if isinstance(now, Exception):
            raise now
        return now


def test_a_secret_that_comes_in_two_parts_is_not_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = [
        Output(text, whole=True) for text in ("one\nat http://u:pla", "one\nat http://u:planted@h")
    ]
    tail = LogTail(Printed(*parts))
    tail.show(job(ended=False))
    assert capsys.readouterr().err == "one\n"
    tail._next = 0
    tail.show(job())
    assert capsys.readouterr().err == "at http://...@h"


def job(*, ended: bool = True) -> Job:
    return Job("first", "", "RUNNING", "python", has_ended=ended)


def test_what_was_shown_is_not_shown_again(capsys: pytest.CaptureFixture[str]) -> None:
    tail = LogTail(Printed(Output("one\n", whole=True), Output("one\ntwo\n", whole=True)))
    tail.show(job())
    tail.show(job())
    assert capsys.readouterr().err == "one\ntwo\n"


def test_an_end_that_is_kept_alone_is_shown_when_it_is_another(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ends = [Output("a\n", whole=False), Output("a\n", whole=False), Output("b\n", whole=False)]
    tail = LogTail(Printed(*ends))
    for _ in ends:
        tail.show(job())
    said = capsys.readouterr().err
    assert [said.count("a\n"), said.count("b\n")] == [1, 1]


def test_output_that_is_not_to_be_had_is_no_reason_to_stop(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tail = LogTail(Printed(UnreachableError("away"), Output('{"steps": 3}\n', whole=True)))
    tail.show(job())
    assert tail.printed.result is None
    tail.show(job())
    assert tail.printed.result == {"steps": 3}
    assert capsys.readouterr().err == '{"steps": 3}\n'


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ('{"a": 1}\n{"a": 2}\nafter it\n', {"a": 2}),
        ("{not JSON}\n" + '{"a": 1}\n{no\n', {"a": 1}),
        ('{"a": 1}\n' + "more\n" * 20, None),
        ("", None),
    ],
)
def test_the_result_is_the_last_object_among_the_last_lines(
    text: str, result: dict[str, int] | None
) -> None:
    assert result_in(text) == result
