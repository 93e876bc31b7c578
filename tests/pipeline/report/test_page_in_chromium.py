"""The page as people meet it: a real browser without a network, hostile names, keys and a mouse."""

import itertools
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import pipeline
from pipeline.commands.report import run_report
from pipeline.config import PackConfig, ReportConfig
from pipeline.data import Dataset
from pipeline.data.keys import path_of
from pipeline.errors import PipelineError
from pipeline.latents import LatentStore
from pipeline.packing.pack import pack
from pipeline.vae import load_bundle
from tests.support.chromium import Tab
from tests.support.small_store import encode

HOSTILE = ("<img src=x onerror=alert(1)>", "<script>alert(2)<", '"onclick="alert(3)')
READY = "document.querySelector('#latent-map[data-ready]') !== null"
WINDOWS = [(1280, 1000, False), (1280, 1000, True), (360, 740, False), (360, 740, True)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, _new_mlflow_file: Path) -> Path:
    """Two short runs on digits whose labels and names want to run, a store, and their pages."""
    folder: Path = tmp_path_factory.mktemp("page")
    for number, pixels in enumerate(load_digits().images[:120]):
        path = folder / "images" / HOSTILE[number % 3] / f"'{number}'&<b>.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels / 16 * 255).astype(np.uint8)).save(path)
    source = (str(folder / "images"),)
    pack(PackConfig(source=source, output=str(folder / "data"), holdout=0.4, workers=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(_new_mlflow_file, folder)}")
        for name, beta in (("mine", 1.0), ("other", 3.5)):
            pipeline.train(
                str(folder / "data/train"), run=name, storage=str(folder / "runs"), steps=6,
                evaluate_every=3, global_batch_size=16, image_size=8, channels=1, workers=0,
                model={"kind": "mlp", "latent_channels": 3, "width": 16},
                objective={"beta": beta},
            )  # fmt: skip
    vae = load_bundle(str(folder / "runs/mine/bundle")).eval()
    train = Dataset.open(str(folder / "data/train"))
    encode(vae, train, folder / "store", columns=("label",))
    runs = str(folder / "runs")
    asked = ReportConfig(run="mine", compare="other", storage=runs, output=str(folder / "run.html"))
    run_report(asked)
    run_report(
        ReportConfig(
            store=str(folder / "store"), compare=str(folder / "store"),
            model=str(folder / "runs/mine/bundle"), output=str(folder / "store.html"),
        )
    )  # fmt: skip
    return folder


@pytest.fixture
def page(place: Path, browser: Tab) -> Tab:
    browser.show(width=1280, height=1000)
    browser.open(f"file://{place}/run.html", READY)
    return browser


def test_the_numbers_of_the_page_are_the_runs(page: Tab, place: Path) -> None:
    result = json.loads((place / "runs/mine/result.json").read_text())
    other = json.loads((place / "runs/other/result.json").read_text())
    tables = dict(
        page.run(
            "[...document.querySelectorAll('table')].map(t => [t.caption.textContent, [...t"
            ".tBodies[0].rows].map(r => [...r.cells].map(c => c.dataset.value ?? c.textContent))])"
        )
    )
    held = {row[0]: row[1:] for row in tables["Held out, nats per image"]}
    before, after = result["holdout_before"], result["holdout_after"]
    assert [float(each) for each in held["ELBO"]] == [before["elbo"], after["elbo"]]
    assert [float(each) for each in held["KL(q || prior)"]] == [before["kl"], after["kl"]]
    assert len(held) == len(after)
    both = {row[0]: row[1:] for row in tables["Held-out numbers of both"]}
    theirs = other["holdout_after"]["elbo"]
    assert [float(each) for each in both["ELBO"]] == [
        theirs, after["elbo"], after["elbo"] - theirs,
    ]  # fmt: skip
    assert tables["Settings that differ"] == [["objective.beta", "3.5", "1.0"]]
    provenance = dict(tables["Provenance"])
    assert provenance["model's digest"] == result["digest"]
    assert f"{after['elbo']:,.3f}" in page.run("document.body.textContent")
    # All held-out images are among those that are set against each other one by one.
    assert f"{after['elbo'] - theirs:+,.3f}" in page.run("document.body.textContent")


def test_nothing_is_asked_for_and_no_name_can_run(page: Tab, place: Path) -> None:
    assert {url.split(":")[0] for url in page.asked} == {"file", "data"}
    assert page.said == []
    assert page.run("document.querySelectorAll('[onerror], [onclick], b, iframe').length") == 0
    legend = page.run("document.querySelector('.legend').textContent")
    assert all(label in legend for label in HOSTILE)
    # Were one written as it is, the page's own policy would still not let it run.
    page.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=alert(1)>')")
    page.run("(() => { const s = document.createElement('script'); s.textContent = 'alert(2)';"
             "document.body.append(s); })()")  # fmt: skip
    deadline = time.monotonic() + 30
    while len([line for line in page.said if "Content Security Policy" in line]) < 2:
        assert time.monotonic() < deadline, page.said
        page.run("1")
        time.sleep(0.05)
    assert not any(line.startswith("dialog") for line in page.said)


def test_what_the_mouse_points_at_is_shown(page: Tab, place: Path) -> None:
    holdout = Dataset.open(str(place / "data/holdout"))
    for number in (0, 7, len(holdout) - 1):
        sample = holdout[number]
        page.run(f"document.querySelectorAll('.point')[{number}].id = 'here'")
        page.point("#here")
        page.run("document.getElementById('here').removeAttribute('id')")
        assert page.run("document.querySelector('#seen-name').textContent") == (
            f"{path_of(sample.key)}, {sample.label}"
        )
        seen = page.run(
            "[...document.querySelector('#seen').getContext('2d').getImageData(0, 0, 8, 8).data]"
        )
        pixels = np.array(seen, np.uint8).reshape(8, 8, 4)[..., :3]
        np.testing.assert_array_equal(pixels, np.asarray(sample.image))


def test_any_two_of_24_images_have_a_way_and_it_is_the_decoders(page: Tab, place: Path) -> None:
    assert page.run("document.querySelectorAll('.marks button').length") == 24
    told = page.run(
        "(() => { const buttons = [...document.querySelectorAll('.marks button')], told = [];"
        "for (const a of buttons) for (const b of buttons) if (a !== b) { a.click(); b.click();"
        "told.push(document.getElementById('chosen').textContent); b.click(); a.click(); }"
        "return told; })()"
    )
    assert len(set(told)) == 24 * 23
    page.point(".mark:nth-of-type(3) circle", press=True)
    page.point(".mark:nth-of-type(1) circle", press=True)
    page.run("(() => { const s = document.getElementById('share'); s.value = 2;"
             "s.dispatchEvent(new Event('input')); })()")  # fmt: skip
    assert page.run("document.getElementById('share-said').textContent") == "75 % C, 25 % A"
    data = json.loads(page.run("document.getElementById('map-data').textContent"))
    vae = load_bundle(str(place / "runs/mine/bundle")).eval()
    holdout = Dataset.open(str(place / "data/holdout"))
    first, third = (holdout[data["marked"][number]] for number in (0, 2))
    with torch.inference_mode():
        ends = vae.encode(vae.pixels([third.image, first.image])).mean
        wanted = vae.decode((0.75 * ends[0] + 0.25 * ends[1])[None])[0, 0].numpy() * 255
    seen = page.run(
        "[...document.querySelector('#between').getContext('2d').getImageData(0, 0, 8, 8).data]"
    )
    assert np.abs(np.array(seen).reshape(8, 8, 4)[..., 0] - wanted).max() <= 1


def test_it_is_used_without_a_mouse(page: Tab) -> None:
    focused = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.id"
    reached = []
    for _ in range(80):
        page.key("Tab", 9)
        reached.append(page.run(focused))
        if reached[-1].startswith(("A: ", "C: ")):
            page.key("Enter", 13)
        if reached[-1] == "share":
            break
    assert reached[-1] == "share"
    assert "walk" in reached
    assert page.run("document.getElementById('share-said').textContent") == "50 % A, 50 % C"
    page.key("ArrowRight", 39)
    assert page.run("document.getElementById('share-said').textContent") == "37 % A, 63 % C"


def test_a_screen_reader_is_told_of_everything(page: Tab) -> None:
    page.point(".marks li:nth-child(1) button", press=True)
    page.point(".marks li:nth-child(2) button", press=True)
    told = page.accessible()
    wants = {"button", "slider", "image", "link", "region", "table", "heading", "navigation"}
    assert [role for role, name in told if role in wants and not name] == []
    assert {role for role, _ in told} >= wants
    levels = page.run("[...document.querySelectorAll('h1,h2,h3')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = page.run("[...document.querySelectorAll('[id]')].map(node => node.id)")
    assert len(ids) == len(set(ids))


CONTRAST = """
(() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => parts(color).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor, alpha = parts(color)[3];
      if (alpha === undefined || alpha > 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll("body *")]
    .filter((node) => [...node.childNodes].some((c) => c.nodeType === 3 && c.data.trim()))
    .filter((node) => node.checkVisibility() && !node.closest("svg"))
    .map((node) => {
      const two = [light(getComputedStyle(node).color), light(ground(node))];
      return (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05);
    }).reduce((least, ratio) => Math.min(least, ratio), 99);
})()
"""


@pytest.mark.parametrize(("width", "height", "dark"), WINDOWS)
@pytest.mark.parametrize("name", ["run.html", "store.html"])
def test_it_is_read_on_a_phone_and_in_the_dark(
    place: Path, browser: Tab, name: str, width: int, height: int, dark: bool
) -> None:
    browser.show(width=width, height=height, dark=dark)
    browser.open(f"file://{place}/{name}", READY)
    assert browser.run("document.documentElement.scrollWidth") <= width
    # WCAG 2.2, 1.4.3: of small text.
    assert browser.run(CONTRAST) >= 4.5
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") != dark
    # 2.5.8: what is touched has 24 pixels at least.
    sides = browser.run(
        "[...document.querySelectorAll('button, input')].filter(n => n.checkVisibility())"
        ".map(n => n.getBoundingClientRect()).map(b => Math.min(b.width, b.height))"
    )
    assert min(sides) >= 24
    assert browser.said == []
    assert (place / name).stat().st_size < 8e6


def test_a_stores_page_tells_what_the_store_tells(place: Path, browser: Tab) -> None:
    browser.open(f"file://{place}/store.html", READY)
    store = LatentStore.open(str(place / "store"))
    values = browser.run(
        "[...[...document.querySelectorAll('table')].find(t => t.caption.textContent.startsWith("
        "'Each channel')).tBodies[0].rows].map(r => [...r.cells].slice(1).map("
        "c => Number(c.dataset.value)))"
    )
    assert [row[0] for row in values] == list(store.mean)
    assert [row[1] for row in values] == list(store.std)
    assert [row[2] for row in values] == list(store.std_of_draws)
    assert browser.run("document.querySelectorAll('.point').length") == len(store)


def test_what_is_not_there_is_refused(place: Path) -> None:
    runs = str(place / "runs")
    with pytest.raises(PipelineError, match="--run other"):
        run_report(ReportConfig(run="othr", storage=runs))
    with pytest.raises(PipelineError, match="--compare other"):
        run_report(ReportConfig(run="mine", compare="othr", storage=runs))
    with pytest.raises(ValueError, match="give `--run NAME` or `--store URL`"):
        ReportConfig()
    with pytest.raises(ValueError, match="leave out `--model`"):
        ReportConfig(run="mine", model="m")
