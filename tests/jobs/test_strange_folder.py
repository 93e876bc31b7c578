"""Commands in a folder that a stranger filled: nothing that lies there runs, or is waited for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EVIL = "open({mark!r}, 'a').write({name!r})\n"
MODULES = (
    "numpy", "json", "pydantic", "multiprocessing", "selectors", "torch", "ray", "mlflow", "yaml",
    "sitecustomize", "usercustomize", "pyarrow", "PIL", "logging", "matplotlib", "evil",
)  # fmt: skip
ASKED = """
import multiprocessing, os, sys
from jobs.command import run_job
import pipeline.figures
def ask():
    import json, numpy, pydantic
    return [path for path in map(os.path.realpath, sys.path) if path == os.getcwd()]
if __name__ == "__main__":
    from concurrent.futures import ProcessPoolExecutor
    from pipeline.config.import_path import imports_from_here
    os.chdir(sys.argv[1])
    assert not imports_from_here()
    try:
        run_job(None, None, ["--config", "x"])
    except BaseException:
        pass
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(os.getcwd).result() == os.getcwd()
    if "ray" in sys.argv:
        from pipeline.cluster.ray_cluster import ray_cluster
        with ray_cluster(1):
            import ray
            assert ray.get(ray.remote(ask).remote()) == []
    from matplotlib import rcParams
    assert not rcParams["text.usetex"]
    print("whole")
"""


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """Modules of well known names, each of which leaves a mark, and matplotlib's settings."""
    folder = tmp_path / "strange"
    folder.mkdir()
    for name in MODULES:
        text = EVIL.format(mark=str(tmp_path / "RAN"), name=name)
        (folder / f"{name}.py").write_text(text)
    (folder / "matplotlibrc").write_text("text.usetex: True\nbackend: module://evil\n")
    return folder


@pytest.mark.parametrize("ray", [False, True])
def test_what_a_command_starts_imports_nothing_from_the_working_folder(
    strange: Path, tmp_path: Path, ray: bool
) -> None:
    program = tmp_path / "program" / "vae.py"
    program.parent.mkdir()
    program.write_text(ASKED)
    known = {
        **os.environ, "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(tmp_path),
    }  # fmt: skip
    asked = [sys.executable, str(program), str(strange), *(["ray"] if ray else [])]
    ended = subprocess.run(asked, cwd=strange, env=known, capture_output=True, text=True)
    assert ended.stdout.endswith("whole\n"), ended.stderr
    assert not (tmp_path / "RAN").exists(), (tmp_path / "RAN").read_text()


def test_a_fifo_in_place_of_matplotlibs_settings_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "matplotlibrc")
    known = {**os.environ, "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(tmp_path / "kept")}
    asked = [sys.executable, "-P", "-c", "import pipeline.figures"]
    subprocess.run(asked, cwd=tmp_path, env=known, check=True, timeout=120)
