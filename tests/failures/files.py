"""Failures of files, names, shapes, code and memory."""

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.failures.flags import NEW
from tests.failures.mending import Failure
from tests.failures.world import NETWORK, flip

ENCODE = "vae encode --data runs/photos/train --output runs/latents --actors 0"


def _empty(home: Path) -> None:
    (home / "empty").mkdir()


def _texts(home: Path) -> None:
    (home / "notes").mkdir()
    (home / "notes/a.txt").write_text("no image")


def _cut_tar(home: Path) -> None:
    with tarfile.open(home / "photos.tar", "w") as tar:
        tar.add(home / "photos", "photos")
    data = (home / "photos.tar").read_bytes()
    (home / "photos.tar").write_bytes(data[: len(data) // 2 + 100])


def _half_broken(home: Path) -> None:
    for path in sorted((home / "photos/cats").iterdir()):
        path.write_bytes(path.read_bytes()[:60])


def _one_file(folder: str, pattern: str) -> Path:
    (path, *_) = sorted(Path(folder).glob(pattern))
    return path


def _no_shard(home: Path) -> None:
    _one_file(f"{home}/runs/photos/train", "shards/*.tar").unlink()


def _flipped_shard(home: Path) -> None:
    path = _one_file(f"{home}/runs/photos/train", "shards/*.tar")
    data = bytearray(path.read_bytes())
    for place in range(600, len(data), 512):
        data[place] ^= 0xFF
    path.write_bytes(bytes(data))


def _cut_manifest(home: Path) -> None:
    path = home / "runs/photos/train/manifest.json"
    path.write_text(path.read_text()[:100])


def _no_run_json(home: Path) -> None:
    (home / "runs/half/run.json").unlink()


def _no_newest(home: Path) -> None:
    for path in (home / "runs/half/checkpoints").glob("step-*"):
        path.unlink()


def _flipped_latents(home: Path) -> None:
    flip(_one_file(f"{home}/runs/latents", "latents/*/*.arrow"), 3000)


def _flipped_bundle(home: Path) -> None:
    flip(home / "runs/pulled/model.safetensors", -20)


def _disguised(home: Path) -> None:
    shutil.move(home / "runs/latents/store.json", home / "runs/latents/gone.json")


def own(text: str) -> Callable[[Path], None]:
    """Plants `mynet.py` as somebody wrote it."""

    def plant(home: Path) -> None:
        (home / "mynet.py").write_text(text)

    return plant


def mended(home: Path) -> None:
    (home / "mynet.py").write_text(NETWORK)


QUICK = ("--importance-samples", "2", "--bound-images", "0")
CUSTOM = NEW.replace("--model.kind mlp", "--model.kind custom").replace(" --model.width 8", "")
NO_ARGUMENTS = NETWORK.replace("self, shape, model", "self").replace(
    "super().__init__()", "super().__init__(); shape = model = None"
)
ENCODES_FIVE = NETWORK.replace("nn.Linear(pixels, 8)", "nn.Linear(pixels, 5)")
DECODES_ONE = NETWORK.replace("shape.num_parameters * shape", "1 * shape")
FLOATS = NETWORK.replace("images // 2", "images / 2")

FAILURES = (
    Failure("split dataset", NEW.replace("runs/photos/train", "runs/photos")),
    Failure("trian", NEW.replace("runs/photos/train", "runs/photos/trian")),
    Failure("never packed", NEW.replace("runs/photos/train", "photos"),
            knows={"--output": "runs/new", "--data": "runs/new"}),
    Failure("empty folder", "vae pack --source empty --output runs/new", _empty,
            {"--source": "photos"}),
    Failure("photoz", "vae pack --source photoz --output runs/new"),
    Failure("only texts", "vae pack --source notes --output runs/new", _texts,
            {"--source": "photos"}),
    Failure("packed before", "vae pack --source photos/dogs --output runs/cats",
            knows={"--output": "runs/dogs"}),
    Failure("another hold-out", "vae pack --source photos --output runs/photos --append "
            "--holdout 0.1"),
    Failure("output below a file", "vae pack --source photos --output runs/mlflow.db/new",
            knows={"--output": "runs/new"}),
    Failure("tar cut short", "vae pack --source photos.tar --output runs/new", _cut_tar,
            {"--source": "photos"}),
    Failure("half of them broken", "vae pack --source photos --output runs/new", _half_broken),
    Failure("storage that is a file", f"{NEW} --storage photos/cats/001.png",
            knows={"--storage": "runs"}),
    Failure("shard gone", NEW, _no_shard, {"--source": "photos"}),
    Failure("bytes flipped", NEW, _flipped_shard, {"--run": "again"}),
    Failure("manifest cut", NEW, _cut_manifest,
            {"--source": "photos", "--output": "runs/photos"}),
    Failure("run.json gone", f"{NEW.replace('--run new', '--run half')} --seed 1", _no_run_json),
    Failure("checkpoints gone", f"{NEW.replace('--run new', '--run half')} --seed 1", _no_newest),
    Failure("another configuration",
            NEW.replace("--run new", "--run first").replace("--image-size 16", "--image-size 8"),
            knows={"--run": "other"}),
    Failure("evaluate a run that goes on",
            "vae evaluate --model half --data runs/photos/holdout", checked_by=QUICK),
    Failure("evaluate frist", "vae evaluate --model frist --data runs/photos/holdout",
            checked_by=QUICK),
    Failure("holdot", "vae evaluate --model first --data runs/photos/holdot", checked_by=QUICK),
    Failure("encode frist", f"{ENCODE} --model models:/frist@candidate"),
    Failure("encode a run", f"{ENCODE} --model first"),
    Failure("no champion", f"{ENCODE} --model models:/first@champion"),
    Failure("version 99", f"{ENCODE} --model models:/first/99"),
    Failure("another model's store", f"{ENCODE} --model models:/half@candidate"),
    Failure("another dataset's store", f"{ENCODE} --model models:/first@candidate "
            "--data runs/cats", knows={"--output": "runs/cat-latents"}),
    Failure("no such column", f"{ENCODE} --model models:/first@candidate --columns class",
            knows={"--columns": "label"}),
    Failure("latens", "vae verify --store runs/latens"),
    Failure("a store as dataset", "vae verify --dataset runs/latents"),
    Failure("latents damaged", "vae verify --store runs/latents", _flipped_latents),
    Failure("store without its pointer", "vae verify --store runs/latents", _disguised),
    Failure("unknown key", "vae decode --store runs/latents --output runs/walk --limit 1 "
            "--keys cats/99x", knows={"--keys": "cats/001"}),
    Failure("unknown label", "vae decode --store runs/latents --output runs/walk --edit cat dogs"),
    Failure("stores of a dataset", "vae stores --store runs/photos/train",
            knows={"--store": "runs/latents"}),
    Failure("explain frist", "vae explain --run frist"),
    Failure("explain a run that goes on", "vae explain --run half"),
    Failure("pull an alias", "vae pull --model models:/first@best --output runs/new"),
    Failure("pull into photos", "vae pull --model models:/first@candidate --output photos",
            knows={"--output": "runs/new"}),
    Failure("rollback", "vae models --rollback first"),
    Failure("register photos", "vae models --register photos",
            knows={"--register": "runs/pulled"}),
    Failure("lineage of nothing", "vae models --lineage models:/secnod/1",
            knows={"--lineage": "models:/first/1"}),
    Failure("bundle damaged", "vae evaluate --model runs/pulled --data runs/photos/holdout",
            _flipped_bundle, {"--model": "models:/first@candidate"}, checked_by=QUICK),
    Failure("init of nothing", f"{NEW} --init frist"),
    Failure("init at another size",
            f"{NEW} --init first".replace("--image-size 16", "--image-size 8")),
    Failure("50 pixels by 8", NEW.replace("--model.kind mlp", "--model.kind autoencoder_kl")
            .replace("--model.width 8", "--model.width 32")
            .replace("--image-size 16", "--image-size 50"), checked_by=("--dry-run",)),
    Failure("class typo", f"{CUSTOM} --model.custom mynet:Mien"),
    Failure("module typo", f"{CUSTOM} --model.custom mynett:Mine"),
    Failure("constructor", f"{CUSTOM} --model.custom mynet:Mine", own(NO_ARGUMENTS),
            {"__init__(self, shape, model)": mended}),
    Failure("encode's shape", f"{CUSTOM} --model.custom mynet:Mine", own(ENCODES_FIVE),
            {"encode": mended}),
    Failure("decode's shape", f"{CUSTOM} --model.custom mynet:Mine", own(DECODES_ONE),
            {"decode": mended}),
    Failure("float transform", f"{NEW} --transform mynet:darker", own(FLOATS),
            {"darker(images, seeds)": mended}),
    Failure("transform typo", f"{NEW} --transform mynet:draker"),
    Failure("too much for memory",
            NEW.replace("--global-batch-size 8", "--global-batch-size 200000")
            .replace("--image-size 16", "--image-size 256"),
            checked_by=("--dry-run",)),
)  # fmt: skip
