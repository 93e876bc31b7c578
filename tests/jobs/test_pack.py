import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support import warm


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return warm.run(warm.ROOT, *arguments)


@pytest.fixture
def images(tmp_path: Path) -> Any:
    for n in range(4):
        folder = tmp_path / "in" / str(n % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (n, n, n)).save(folder / f"{n}.png")
    return tmp_path / "in"


def test_pack_then_verify_print_their_results_as_json(images: Any, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    packed = run("jobs.pack", "--source", str(images), "--output", output)
    assert packed.returncode == 0, packed.stderr
    result = json.loads(packed.stdout.splitlines()[-1])
    assert (result["samples"], result["shards"], result["rejected"]) == (4, 1, 0)
    verified = run("jobs.verify", "--dataset", output)
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout.splitlines()[-1]) == {"ok": True, "problems": []}


def test_rejects_past_the_budget_end_with_3_and_what_remains_is_packed(
    images: Any, tmp_path: Path
) -> None:
    (images / "text.jpg").write_text("not an image")
    command = ("jobs.pack", "--source", str(images), "--output", str(tmp_path / "out"))
    packed = run(*command)
    assert packed.returncode == 3
    assert json.loads(packed.stdout.splitlines()[-1])["samples"] == 4
    output = str(tmp_path / "again")
    assert run(*command[:-1], output, "--bad-fraction", "1").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--source", "/no/such/folder"), 1, "/no/such/folder"),
        (("--source", "."), 1, "holds no images"),
        (("--remove", "x"), 1, "no dataset here"),
        ((), 2, "--source"),
    ],
)
def test_bad_input_gets_one_message_and_no_traceback(
    tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    arguments = tuple(str(tmp_path / "empty") if a == "." else a for a in arguments)
    (tmp_path / "empty").mkdir()
    found = run("jobs.pack", "--output", str(tmp_path / "out"), *arguments)
    assert found.returncode == code
    assert message in found.stderr
    assert "Traceback" not in found.stderr


def test_a_dataset_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    found = run("jobs.verify", "--dataset", str(tmp_path))
    assert found.returncode == 1
    assert "there is no dataset here" in found.stderr
    assert "Traceback" not in found.stderr
