"""What becomes a store's current snapshot is said, and what is refused leaves no trace."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from jobs.command import parse_flags, validate
from jobs.demo import write_digits
from pipeline.commands.encode import Encoded, run_encoding
from pipeline.config import EncodeConfig, ModelConfig, PackConfig, PreprocessConfig
from pipeline.errors import PipelineError
from pipeline.latents import LatentStore
from pipeline.latents.marks import begun
from pipeline.latents.repair_command import encode_next
from pipeline.latents.snapshot import read_pointer
from pipeline.packing.pack import pack
from pipeline.vae import build_vae, load_bundle, save_bundle
from tests.support.killing import tree


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets `a` and `b` that share no image, and models `one` and `two`."""
    folder = tmp_path_factory.mktemp("world")
    for name, numbers in (("a", range(40)), ("b", range(40, 80))):
        write_digits(folder / name, numbers)
        source, output = (str(folder / name),), str(folder / f"packed-{name}")
        pack(PackConfig(source=source, output=output, workers=1))
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        vae = build_vae(ModelConfig(kind="mlp"), PreprocessConfig(image_size=8, channels=1))
        save_bundle(vae, str(folder / name), {})
    return folder


def packed(world: Path, name: str) -> str:
    return str(world / f"packed-{name}")


def encode(world: Path, store: Path, **more: object) -> Encoded:
    values = {"model": str(world / "one"), "data": packed(world, "a"), "actors": 0}
    return run_encoding(EncodeConfig.model_validate({"output": str(store), **values, **more}))


def run_line(line: str) -> EncodeConfig:
    """The config of a command line that was printed."""
    words = shlex.split(line.removeprefix("vae encode ").removeprefix("python -m jobs.encode "))
    return validate(EncodeConfig, parse_flags(EncodeConfig, words, "vae encode")[0])


def test_another_identity_that_becomes_current_is_said_in_one_line_that_mends_it(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    first = encode(world, store, columns=("label",))
    assert "becomes current" not in caplog.text, "there was none before"
    second = encode(world, store)
    (said,) = [each.getMessage() for each in caplog.records if "becomes current" in each.message]
    assert "\n" not in said
    assert "`--columns label` before, no `--columns` now" in said
    assert first.identity[:12] in said
    assert "40 latents of" in said
    caplog.clear()
    line = re.findall(r"`(python -m jobs\.encode .*?)`", said)[0]
    run_encoding(run_line(line))
    pointer = read_pointer(str(store))
    assert pointer is not None
    assert (pointer.identity, second.identity) == (first.identity, LatentStore.open(
        store, second.snapshot).snapshot.identity.digest)  # fmt: skip
    assert "no `--columns` before, `--columns label` now" in caplog.text


def test_another_model_is_named_where_it_may_replace_the_first(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    encode(world, store)
    encode(world, store, model=str(world / "two"), replace_model=True)
    assert re.search(r"What differs: model [0-9a-f]{12} before, [0-9a-f]{12} now", caplog.text)


def test_the_command_that_a_training_advises_keeps_what_the_store_has(
    world: Path, tmp_path: Path
) -> None:
    store, data = tmp_path / "store", packed(world, "a")
    places = str(store), str(tmp_path / "other")

    def advised(model: str = "one", data: str = data) -> EncodeConfig:
        bundle = str(world / model)
        line = encode_next(bundle, data, places, digest=load_bundle(bundle).digest)
        return run_line(line.strip("`"))

    first = advised()
    assert (first.columns, first.output) == (("label",), str(store)), "nothing is there yet"
    made = encode(world, store, columns=("label",), dtype="float32", batch_size=16)
    again = run_encoding(advised().model_copy(update={"actors": 0}))
    assert (again.identity, again.encoded) == (made.identity, 0)
    other = advised("two")
    assert (other.output, other.dtype, other.columns) == (places[1], "float32", ("label",))
    beside = advised(data=packed(world, "b"))
    assert (beside.output, beside.columns) == (places[1], ("label",))


def test_without_labels_none_are_asked_for(world: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted((world / "a").rglob("*.png"))[:4]):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / f"in/{number}.png").write_bytes(path.read_bytes())
    data, places = str(tmp_path / "flat"), (str(tmp_path / "a"), str(tmp_path / "b"))
    pack(PackConfig(source=(str(tmp_path / "in"),), output=data, workers=1))
    for url in (data, str(tmp_path / "nowhere")):
        line = encode_next("MODEL", url, places, digest=None)
        assert (run_line(line.strip("`")).columns, run_line(line.strip("`")).data) == ((), url)


@pytest.mark.parametrize(
    "wrong",
    [
        {"data": "b"},
        {"data": "nowhere"},
        {"model": "nothing"},
        {"model": "two"},
        {"columns": ("price",)},
        {"where": "price > 1"},
        {"image_size": (7,)},
    ],
)
def test_a_refused_encoding_writes_nothing(
    world: Path, tmp_path: Path, wrong: dict[str, object]
) -> None:
    store = tmp_path / "store"
    encode(world, store)
    (store / "attempts/outcome.json").unlink()  # else it is told there how this one ended
    before = tree(tmp_path)
    given = dict(wrong)
    if wrong.get("data") == "b":
        given["data"] = packed(world, "b")
    elif "model" in wrong:
        given["model"] = str(world / str(wrong["model"]))
    with pytest.raises(PipelineError):
        encode(world, store, **given)
    assert tree(tmp_path) == before
    assert begun(str(store)) == set()


def test_nothing_comes_into_being_in_what_is_no_store(world: Path, tmp_path: Path) -> None:
    before = tree(world)
    with pytest.raises(PipelineError, match="holds an image dataset"):
        encode(world, Path(packed(world, "b")))
    assert tree(world) == before
    with pytest.raises(PipelineError, match="take no other size"):
        encode(world, tmp_path / "new", buckets=("9:9",))
    assert list(tmp_path.iterdir()) == []
