"""What docs/extend.md shows is taken out of the page and run."""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.distributions import StudentT

from jobs import train
from pipeline.commands.encode import run_encoding
from pipeline.config import EncodeConfig, PackConfig, TrainConfig
from pipeline.latents import LatentStore
from pipeline.packing.pack import pack
from pipeline.registry.named_models import load_named
from tests.docs.blocks import ROOT, blocks, files
from tests.support.digit_models import pack_digits
from tests.support.presence import present

PAGE = ROOT / "docs/extend.md"


@pytest.fixture
def written(mlflow_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's files, importable as a user's own."""
    for name, text in files(PAGE).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_file)
    return tmp_path


def trained(folder: Path, run: str, **knobs: object) -> dict[str, object]:
    values = {
        "data": str(folder / "data"), "run": run, "storage": str(folder / "runs"), "steps": 2,
        "global_batch_size": 20, "image_size": 8, "channels": 1, "workers": 0,
        "optimizer": {"warmup_steps": 0},
        "model": {"kind": "custom", "custom": "my_network:Patches"},
    }  # fmt: skip
    return dict(train.main(TrainConfig.model_validate(values | knobs)).result)


def test_an_encoder_beside_the_vae_gives_a_column_that_the_store_keeps(written: Path) -> None:
    pack_digits(written)
    trained(written, "plain")
    found = run_encoding(
        EncodeConfig(
            model=str(written / "runs/plain/bundle"), data=str(written / "data"), actors=0,
            output=str(written / "latents"), also=("my_encoder:Edges",),
            allow_custom=("my_network:Patches",),
        )
    )  # fmt: skip
    assert found.complete
    edges = LatentStore.open(found.store)[0].columns["edges"]
    assert isinstance(edges, np.ndarray)
    assert edges.shape == (16,)


def test_network_and_augmentation_train_and_the_model_is_loaded_with_its_class_named(
    written: Path,
) -> None:
    pack_digits(written)
    plain = trained(written, "plain")
    darker = trained(written, "darker", transform="my_augmentation:darker")
    assert (plain["steps"], darker["steps"]) == (2, 2)
    assert plain["digest"] != darker["digest"]  # the transform was seen by training
    vae, _ = load_named("darker", str(written / "runs"), ("my_network:Patches",))
    assert vae.latent_shape == (4, 2, 2)


def test_the_augmentation_follows_each_images_own_seed(written: Path) -> None:
    darker = importlib.import_module("my_augmentation").darker
    images = torch.full((3, 1, 4, 4), 100, dtype=torch.uint8)
    found = darker(images, torch.tensor([0, 5, 64 + 7]))
    assert [int(image.unique()) for image in found] == [100, 95, 93]


def test_the_tar_of_the_source_is_packed_whole_with_its_labels(written: Path) -> None:
    subprocess.run([sys.executable, "my_source.py"], check=True, timeout=600)
    packed = pack(PackConfig(source=("digits.tar",), output="packed", workers=1))
    # 1,797 digits, 178 of which are ones, as scikit-learn counts them.
    assert (packed.samples, packed.counts.seen) == (1797, 1797)
    assert present(packed.found).num_labels == 10
    targets = load_digits().target.tolist()
    assert present(packed.found).labels == {str(label): targets.count(label) for label in range(10)}


@pytest.fixture
def student_t(written: Path) -> ModuleType:
    """The page's likelihood, as a module of its own."""
    path = written / "pipeline/vae/student_t.py"
    spec = importlib.util.spec_from_file_location("student_t", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_likelihood_integrates_to_one_and_agrees_with_torch(student_t: ModuleType) -> None:
    likelihood = student_t.StudentT(1, 0.1, learned=True).double()
    location = torch.tensor([[[[0.4]]]], dtype=torch.float64)
    points = torch.linspace(-60, 61, 400_001, dtype=torch.float64)
    with torch.no_grad():
        found = likelihood.log_prob(location.expand(len(points), 1, 1, 1), points.view(-1, 1, 1, 1))
        centre = 0.5 + 0.4 * 255 / 512
        oracle = StudentT(4.0, centre, 0.1).log_prob(points) - torch.log(torch.tensor(256.0))
    # A unit of the density is one level: 256 of them make the range.
    assert float(torch.trapezoid(found.exp(), points * 256)) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(found, oracle.double(), rtol=1e-6, atol=1e-6)


def test_the_likelihoods_quantile_is_the_inverse_of_its_distribution(student_t: ModuleType) -> None:
    likelihood = student_t.StudentT(1, 0.1, learned=True).double()
    uniforms = torch.tensor([0.001, 0.3, 0.5, 0.9, 0.999], dtype=torch.float64).view(-1, 1, 1, 1)
    with torch.no_grad():
        ratios = (likelihood.quantile(torch.zeros_like(uniforms), uniforms) - 0.5) / 0.1
    # Quantiles of Student's t with 4 degrees of freedom from printed tables.
    expected = [-7.1732, -0.5686, 0.0, 1.5332, 7.1732]
    assert ratios.flatten().tolist() == pytest.approx(expected, abs=1e-3)


def patched(folder: Path) -> Path:
    """A copy of the product with the page's two patches and its likelihood."""
    for room in ("pipeline", "jobs"):
        ours = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / room, folder / room, dirs_exist_ok=True, ignore=ours)
    for diff in blocks(PAGE, "diff"):
        for part in re.split(r"^--- a/.*\n", diff, flags=re.M)[1:]:
            head, *hunks = re.split(r"^@@\n", part, flags=re.M)
            path = folder / head.removeprefix("+++ b/").strip()
            for hunk in hunks:
                lines = hunk.splitlines(keepends=True)
                before = "".join(line[1:] for line in lines if line[0] != "+")
                after = "".join(line[1:] for line in lines if line[0] != "-")
                text = path.read_text()
                assert text.count(before) == 1, f"docs/extend.md: {head}{hunk} does not fit"
                path.write_text(text.replace(before, after))
    return folder


BETWEEN = """
import torch
from jobs import train
from pipeline.config import ModelConfig, ObjectiveConfig, PreprocessConfig, TrainConfig
from pipeline.vae import build_vae, draw_noise, objective_loss

assert train.__file__.startswith({folder!r}), train.__file__
torch.manual_seed(0)
model = ModelConfig(kind="mlp", latent_channels=4, width=32, likelihood="student_t")
vae = build_vae(model, PreprocessConfig(image_size=8, channels=1)).double()
images = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8)
terms = vae(images, draw_noise(vae, 0, 1, range(20), samples=5))
bounds = [
    -objective_loss(ObjectiveConfig(kind=kind, samples=5), terms, 1).loss_per_image
    for kind in ("renyi", "iwae")
]
assert (terms.log_weights.mean(1) < bounds[0]).all()
assert (bounds[0] < bounds[1]).all()
result = train.main(
    TrainConfig(
        data="data", run="t", steps=2, global_batch_size=20, image_size=8, channels=1, workers=0,
        model=model, objective=ObjectiveConfig(kind="renyi", samples=3),
    )
).result
assert result["steps"] == 2, result
"""


def test_with_the_patches_the_likelihood_trains_and_the_bound_lies_where_the_page_says(
    written: Path,
) -> None:
    pack_digits(written)
    folder = patched(written)
    ended = subprocess.run(
        [sys.executable, "-c", BETWEEN.format(folder=str(folder))],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
