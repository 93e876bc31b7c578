"""What may be installed: no release with an advisory that was known when its bound was set."""

import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.warm import ROOT

# The last release with a known advisory that matters to who reads strangers' bytes or answers
# strangers' requests, looked up on 2026-11-29, and one of the advisories.
LAST_VULNERABLE = {
    "aiohttp": ("3.14.3", "PYSEC-2026-4369: the request's scheme is the sender's to choose"),
    "fsspec": ("2026.5.0", "CVE-2026-104851: a reference file's templates run code"),
    "mlflow": ("3.17.1", "CVE-2026-53995: a trace's id leads out of the server's folder"),
    "pillow": ("12.3.0", "CVE-2026-112403: a JPEG writes beyond the decoder's buffer"),
    "pillow-heif": ("1.2.1", "CVE-2026-28231: reads beyond an image's end"),
    "pyarrow": ("23.0.0", "CVE-2026-25087: IPC files, use after free"),
    "ray": ("2.51.2", "CVE-2025-62593: a page in a browser runs code on the cluster"),
    "torch": ("2.10.0", "CVE-2026-24747: weights_only=True runs code; CVE-2026-4538"),
    "urllib3": ("2.6.3", "CVE-2026-44432: a compressed answer of any size is unpacked"),
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def requirements(*lists: list[str]) -> dict[str, Requirement]:
    found = [Requirement(line) for lines in lists for line in lines]
    return {canonicalize_name(each.name): each for each in found}


@pytest.mark.parametrize("name", LAST_VULNERABLE)
def test_no_release_with_a_known_advisory_can_be_installed(name: str) -> None:
    last, why = LAST_VULNERABLE[name]
    every = [PROJECT["dependencies"], *EXTRAS.values()]
    asked = [found[name] for lines in every if name in (found := requirements(lines))]
    assert asked, f"nothing asks for {name}"
    for requirement in asked:
        assert not requirement.specifier.contains(last), f"{requirement} admits {last}: {why}"


def test_who_only_loads_a_model_gets_the_same_bounds() -> None:
    """`vae-pipeline[pull]` is installed without our constraints."""
    pulled = requirements(PROJECT["dependencies"], EXTRAS["pull"])
    assert LAST_VULNERABLE.keys() - pulled.keys() == {"pillow-heif", "ray"}


def test_the_tested_versions_meet_every_bound() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins: dict[str, Version] = {
        canonicalize_name(name): Version(version)
        for name, _, version in (line.partition("==") for line in lines if "==" in line)
    }
    for lists in (PROJECT["dependencies"], *EXTRAS.values()):
        for name, requirement in requirements(lists).items():
            if name != "vae-pipeline":
                assert name in pins, f"{name} has no pin"
                assert requirement.specifier.contains(pins[name]), (
                    f"{requirement}: {pins[name]} is pinned"
                )
