"""The image builds, and runs jobs.doctor as its own user; minutes and gigabytes, so not always."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.chaos


def test_the_image_builds_and_its_user_is_not_root_and_the_doctor_is_content():
    if not any(shutil.which(program) for program in ("docker", "podman", "buildah")):
        pytest.skip("docker, podman or buildah builds images; none is here")
    done = subprocess.run(
        ["make", "image"], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    if "no engine is here" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1])["ok"] is True
