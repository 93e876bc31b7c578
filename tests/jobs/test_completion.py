"""The script for the shell, sourced by a real bash."""

import subprocess

import pytest

from jobs.completion import script


def completed(*words: str) -> list[str]:
    """What bash offers at the end of `vae WORDS`."""
    typed = " ".join(["vae", *words])
    asked = (
        f"{script()}\nCOMP_WORDS=({typed}); [ -n '{words[-1]}' ] || COMP_WORDS+=('');"
        'COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _vae_complete; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("tr",), ["train"]),
        (("pack", "--out"), ["--output"]),
        (("train", "--objective.be"), ["--objective.beta"]),
        (("verify", "--js"), ["--json"]),
        (("train", "--model.kind", "c"), ["conv", "custom"]),
        (("train", "--recipe", "ph"), ["photos-64"]),
    ],
)
def test_the_tab_key_completes_jobs_and_flags(words: tuple[str, ...], expected: list[str]) -> None:
    assert completed(*words)[: len(expected)] == expected
    assert all(found.startswith(words[-1]) for found in completed(*words))
