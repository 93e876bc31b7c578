"""What a job runs with is the folder's files, and none that git ignores."""

import io
import subprocess
import zipfile
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.submission import working_tree
from pipeline.submission.working_tree import packed


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    (folder / "jobs").mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (folder / ".gitignore").write_text("data/\n")
    (folder / "jobs/train.py").write_text("print()\n")
    (folder / "run.sh").write_text("true\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "data").mkdir()
    (folder / "data/large.bin").write_bytes(b"0" * 1000)
    (folder / "link").symlink_to("/etc/passwd")
    return folder


def test_new_files_are_in_it_and_ignored_ones_and_links_are_not(checkout: Path) -> None:
    name, data = packed(checkout)
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert archive.namelist() == [".gitignore", "jobs/train.py", "run.sh"]
    assert archive.getinfo("run.sh").external_attr >> 16 == 0o755
    assert name.startswith("_ray_pkg_")


def test_the_name_is_that_of_the_contents_and_not_of_the_time(checkout: Path) -> None:
    before = packed(checkout)
    (checkout / "jobs/train.py").write_text("print()\n")
    assert packed(checkout) == before
    (checkout / "jobs/train.py").write_text("print(1)\n")
    assert packed(checkout)[0] != before[0]


def test_what_is_no_checkout_and_what_is_too_large_are_refused(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain").mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    with pytest.raises(ConfigError, match="is no git checkout"):
        packed(tmp_path / "plain")
    monkeypatch.setattr(working_tree, "LIMIT_BYTES", 10)
    with pytest.raises(ConfigError, match="more than 10"):
        packed(checkout)
