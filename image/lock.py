"""Writes image/locks: exactly what the images install, each file with the hashes of its wheels.

Run `make locks` after a change of constraints.txt or of pyproject.toml's dependencies; a test fails
until it was done. For Linux on x86_64 and the Python of the Dockerfile's base.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "image/locks"
PYTHON, PLATFORM = "3.11", "x86_64-manylinux_2_28"
SLIM_IS_WITHOUT = ("torch", "ray", "webdataset", "safetensors")
"""What neither MLflow's server nor a submission nor packing needs."""
_OF_GPUS = re.compile(r"^(torch|triton|nvidia-.*|cuda-.*)$")


def locked(requirements: Iterable[str], without: Iterable[str] = ()) -> dict[str, str]:
    """Lines of a requirements file by package: NAME==VERSION --hash=... of each wheel that fits."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, left_out = Path(folder, "wanted.in"), Path(folder, "without.txt")
        wanted.write_text("\n".join(requirements))
        left_out.write_text("".join(f'{name} ; sys_platform == "never"\n' for name in without))
        found = subprocess.run(
            ["uv", "pip", "compile", str(wanted), "--constraint", str(ROOT / "constraints.txt"),
             "--override", str(left_out), "--python-version", PYTHON, "--python-platform", PLATFORM,
             "--format", "pylock.toml", "--quiet"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    return {each["name"]: _line(each) for each in tomllib.loads(found.stdout)["packages"]}


def _line(package: dict[str, object]) -> str:
    files = package.get("wheels") or [package["sdist"]]
    hashes = sorted(f"--hash=sha256:{file['hashes']['sha256']}" for file in files)  # type: ignore[attr-defined]
    return " \\\n    ".join([f"{package['name']}=={package['version']}", *hashes])


def needed(extra: str) -> list[str]:
    """What the package itself needs, one of its extras, and what builds it."""
    file = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, build = file["project"], file["build-system"]["requires"]
    return [*project["dependencies"], *project["optional-dependencies"][extra], *build]


def locks() -> dict[str, dict[str, str]]:
    """By file: what is in it."""
    torch = locked(["torch"])
    base = locked(needed("cluster"), without=["torch"])
    return {
        "base": base,
        # With CUDA, as the usual index has it; and what torch needs beside it, on CPUs too.
        "torch": {name: line for name, line in torch.items() if name not in base},
        "torch-cpu": {
            name: line
            for name, line in torch.items()
            if name not in base and not _OF_GPUS.match(name)
        },
        "slim": locked(needed("cluster"), without=SLIM_IS_WITHOUT),
        "sbom": locked(["cyclonedx-bom"]),
    }


def main() -> None:
    """Writes the files."""
    LOCKS.mkdir(exist_ok=True)
    for name, lines in locks().items():
        text = "".join(f"{lines[package]}\n" for package in sorted(lines))
        (LOCKS / f"{name}.txt").write_text(text)
        sys.stderr.write(f"{name}: {len(lines)} packages\n")


if __name__ == "__main__":
    main()
