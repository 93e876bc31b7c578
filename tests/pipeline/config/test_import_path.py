"""What a user's own import path names is found, or said to be missing in one line."""

from pathlib import Path

import pytest

from pipeline.config.import_path import find_named
from pipeline.errors import ConfigError


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_path.py").write_text("class Net:\n    class Part: pass\n")
    (tmp_path / "own_broken.py").write_text("x = 1\nx / 0\n")
    (tmp_path / "own_script.py").write_text("import sys\nsys.exit()\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_class_and_one_inside_it_are_found() -> None:
    net = find_named("own_path:Net", "custom", ConfigError)
    assert find_named("own_path:Net.Part", "custom", ConfigError) is net.Part


@pytest.mark.parametrize("path", ["nowhere:Net", "own_path:Nothing", "own path"])
def test_what_is_not_there_is_named_with_the_knob(path: str) -> None:
    with pytest.raises(ConfigError, match=rf"custom {path}: "):
        find_named(path, "custom", ConfigError)


@pytest.mark.parametrize("module", ["own_broken", "own_script"])
def test_a_module_that_fails_or_ends_is_told_with_its_line(module: str) -> None:
    with pytest.raises(ConfigError, match=rf"its module fails: .*\({module}.py, line 2\)"):
        find_named(f"{module}:Net", "custom", ConfigError)
