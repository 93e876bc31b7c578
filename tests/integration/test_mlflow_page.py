"""MLflow's own page of a run, in a real browser: what a training prints leads where people look."""

from pathlib import Path

import pipeline
from pipeline.data import Dataset
from pipeline.tracking.mlflow_facts import run_page
from tests.servers.mlflow import MlflowServer
from tests.support.chromium import Tab
from tests.support.packed_digits import write_digits


def test_a_runs_page_opens_in_the_view_of_model_training_and_names_its_dataset(
    mlflow_server: MlflowServer, browser: Tab, tmp_path: Path
) -> None:
    data = write_digits(tmp_path, 120)
    run = pipeline.train(
        str(data), run="looked-at", storage=str(tmp_path / "runs"), steps=4, global_batch_size=16,
        workers=0, image_size=8, channels=1, model={"kind": "mlp"},
    )  # fmt: skip
    assert run.run_id is not None
    page = run_page(run.run_id)
    assert page.startswith(f"{mlflow_server.uri}/#/")
    browser.show(width=1500, height=1000)
    text = "(document.body?.innerText ?? '')"
    browser.open(page, f"{text}.includes('Datasets') && {text}.includes('mlp VAE')")
    said = browser.run(text)
    assert Dataset.open(str(data)).digest[:36] in said
    # What the other view has beside every experiment.
    assert "Judges" not in said
    browser.picture(tmp_path / "page.png")
