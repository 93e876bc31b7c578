"""What a command line or its YAML must not hold."""

from pathlib import Path

import pytest

from tests.support.hostile import refused


def test_a_yaml_that_names_a_python_object_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "c.yaml").write_text(f"data: !!python/object/apply:pathlib.Path.touch [{marker}]\n")
    assert "not YAML" in refused("train", "--config", str(tmp_path / "c.yaml"))
    assert not marker.exists()


@pytest.mark.parametrize(
    "flags",
    [("train", "--data", "s3://AKIA:planted@b/d", "--run", "r"),
     ("train", "--data", "d", "--run", "r", "--storage", "https://me:planted@host"),
     ("train", "--data", f"https://me:planted{'x' * 400}@host/d", "--run", "r"),
     ("pack", "--source", "https://me:planted@host/x.tar", "--output", "o"),
     ("submit", "--", "python", "-m", "jobs.train", "--data", "s3://a:planted@b", "--run", "r")],
)  # fmt: skip
def test_a_password_on_a_command_line_is_refused_and_not_repeated(flags: tuple[str, ...]) -> None:
    said = refused(*flags)
    assert "holds a password" in said
    assert "planted" not in said


@pytest.mark.parametrize(
    "command",
    [("python", "t.py", "--data=https://u:planted@h/x"),
     ("env", "AWS_SECRET_ACCESS_KEY=planted", "python", "t.py"),
     ("python", "t.py", "--token", "planted"), ("python", "t.py", "--password=planted"),
     ("python", "t.py", "s3://b/x?X-Amz-Signature=planted"),
     ("bash", "-c", "cd /x; HF_TOKEN='planted' python t.py 'http://u:planted@h'")],
)  # fmt: skip
def test_a_secret_anywhere_in_a_submitted_command_is_refused_before_anybody_is_asked(
    command: tuple[str, ...],
) -> None:
    said = refused("submit", "--address", "http://127.0.0.1:9", "--", *command)
    assert "comes from the environment" in said or "come from the environment" in said
    assert "planted" not in said
