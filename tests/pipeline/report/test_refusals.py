"""What no page is made of, and where none is put: each refused in one line, and nothing is lost."""

from pathlib import Path

import pytest

import pipeline
from pipeline import storage
from pipeline.commands.explain import run_explanation
from pipeline.commands.report import run_report
from pipeline.config import ExplainConfig, ReportConfig, TrainConfig
from pipeline.errors import ModelError, RunError, StorageError
from pipeline.registry.named_models import nothing_called
from pipeline.runs.run import Pins, Run
from tests.hostile.gifts import rewrite
from tests.support.packed_digits import write_digits


@pytest.mark.parametrize("output", ["latents/store.json", "photos/cat.jpg", "pages/", "runs/first"])
def test_a_page_replaces_nothing_that_is_no_page(output: str) -> None:
    with pytest.raises(ValueError, match=r"a page's name ends in \.html"):
        ReportConfig(store="latents", output=output)
    assert ReportConfig(store="latents", output="s3://bucket/pages/Report.HTML").output


def test_a_run_that_was_killed_before_its_result_is_named_with_what_goes_on_with_it(
    tmp_path: Path,
) -> None:
    config = TrainConfig(data="/d", run="mine", storage=str(tmp_path), steps=8)
    run = Run.at(config)
    run.open(config, Pins("digest", None))
    storage.publish(run.path("bundle", "bundle.json"), b"{}")
    with pytest.raises(RunError, match="was stopped before its end") as error:
        run_report(ReportConfig(run="mine", storage=str(tmp_path)))
    assert "--run" in str(error.value)
    assert "mine/bundle" not in str(error.value)  # A page takes no bundle.


def test_a_name_with_a_line_break_is_told_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError) as error:
        run_report(ReportConfig(run="a\nb", storage=str(tmp_path)))
    assert str(error.value).startswith(r"a\nb: is no finished run in ")
    assert "\n" not in str(error.value)


def test_a_class_that_a_run_names_is_imported_only_if_this_command_names_it(
    tmp_path: Path,
) -> None:
    own, runs = "tests.chaos.deadly_network:Deadly", str(tmp_path / "runs")
    pipeline.train(
        write_digits(tmp_path, 40), run="own", storage=runs, workers=0, steps=2,
        global_batch_size=8, image_size=8, channels=1, no_register=True,
        model={"kind": "custom", "custom": own},
    )  # fmt: skip
    page = str(tmp_path / "page.html")
    with pytest.raises(ModelError, match=f"--allow-custom {own}"):
        run_report(ReportConfig(run="own", storage=runs, output=page))
    run_report(ReportConfig(run="own", storage=runs, output=page, allow_custom=(own,)))
    assert Path(page).exists()
    # Nor is an address asked that only the run names.
    rewrite(
        tmp_path / "runs/own/run.json",
        lambda value: value["config"].update(data="http://127.0.0.1:9/d", holdout=None),
    )
    for ask in (
        lambda: run_report(ReportConfig(run="own", storage=runs, output=page, allow_custom=(own,))),
        lambda: run_explanation(ExplainConfig(run="own", storage=runs, allow_custom=(own,))),
    ):
        with pytest.raises(StorageError, match=r"names http://127\.0\.0\.1:9/d.*was not asked"):
            ask()


@pytest.mark.parametrize("flag", ["--run", "--model", "load_model"])
def test_whoever_names_what_is_not_there_reads_no_flag_that_the_command_lacks(
    tmp_path: Path, flag: str
) -> None:
    """`jobs.encode` and Python know no `--storage`: a folder does for all."""
    said = str(nothing_called("xyz", str(tmp_path), flag))
    assert said.endswith("elsewhere is named by its folder.")
    assert "`--" not in said
