"""A user's encoder beside the VAE: its vectors are columns of the same store, in its identity."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.commands.encode_identity import identity_of
from pipeline.config import EncodeConfig
from pipeline.encoding.also import load_again, load_also, weights_and_code
from pipeline.encoding.precision import Unmeasured
from pipeline.encoding.reencode import reencode
from pipeline.encoding.shard import encode_shard
from pipeline.errors import ConfigError, StoreError
from pipeline.latents import LatentLoader, LatentStore, verify_store
from pipeline.latents.garbage import remove_garbage
from pipeline.latents.identity import View
from tests.pipeline.encoding.test_views import grid_vae, photos
from tests.support.small_store import encode, small_dataset, small_vae

CPU = torch.device("cpu")
HERE = "tests.pipeline.encoding.test_also"
SEEN: Counter[str] = Counter()


class Colours(nn.Module):
    """Each channel's mean, and how long the label is."""

    columns = {"colours": 3, "length": 1}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def digest(self) -> str:
        return weights_and_code(self)

    def encode(self, images: Tensor, columns: Mapping[str, list[Any]]) -> dict[str, Any]:
        assert images.dtype == torch.uint8
        assert torch.is_inference_mode_enabled()
        SEEN["images"] += len(images)
        colours = images.float().mean((2, 3)).expand(len(images), 3) * self.factor
        return {"colours": colours, "length": np.array([[len(v or "")] for v in columns["label"]])}


class Torn(Colours):
    """Has a number that is none for black images, which padding and bad images are."""

    def encode(self, images: Tensor, columns: Mapping[str, list[Any]]) -> dict[str, Any]:
        found = super().encode(images, columns)
        return {**found, "colours": found["colours"].log()}


class Large(Colours):
    def __init__(self) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


class Nameless:
    columns = {"x": 1}  # noqa: RUF012

    def encode(self, images: Tensor, _: Any) -> dict[str, Any]:
        return {"x": images[:, 0, 0, :1]}


class Constant(Nameless):
    def digest(self) -> str:
        return "v1"


class Wide(Colours):
    def encode(self, images: Tensor, columns: Mapping[str, list[Any]]) -> dict[str, Any]:
        return {**super().encode(images, columns), "length": np.zeros((len(images), 2))}


class Broken(Colours):
    def encode(self, images: Tensor, columns: Mapping[str, list[Any]]) -> dict[str, Any]:
        raise KeyError("caption")


def said(name: str) -> Any:
    return load_also(f"{HERE}:{name}", CPU).said


def asked(name: str, **more: Any) -> Any:
    return {"columns": ("label",), "also": (said(name),), **more}


def test_each_image_has_its_vector_as_a_column_of_floats_in_store_loader_and_file(
    tmp_path: Path,
) -> None:
    dataset, vae = photos(tmp_path, range(20)), grid_vae()
    store = encode(vae, dataset, tmp_path / "s", **asked("Colours", views=(View(16, 4),)))
    assert verify_store(store.url) == []
    for latent in store:
        found: Any = latent.columns["colours"]
        assert found.dtype == np.float32
        assert found.shape == (3,)
        assert latent.columns["length"] == [float(len(str(latent.columns["label"] or "")))]
    rows = store.selection.rows[0].record(0)
    assert rows.schema.field("colours").type == pa.list_(pa.float32(), 3)
    again = {latent.key: latent.columns["colours"] for latent in store}
    for batch in LatentLoader(store, global_batch_size=6):
        assert isinstance(batch.columns["colours"], np.ndarray)
        assert batch.columns["colours"].dtype == np.float32
        for row in np.flatnonzero(batch.valid.numpy()):
            np.testing.assert_array_equal(batch.columns["colours"][row], again[batch.keys[row]])
    found = reencode(vae, dataset, store, 20, seed=0)
    assert (found.images, found.equal) == (20, 20)


def test_the_vectors_are_of_the_pixels_that_the_vae_sees(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path, range(30))
    store = encode(small_vae(), dataset, tmp_path / "s", **asked("Colours"))
    for latent in store:
        number = int(latent.key.rsplit("/", 1)[-1].split("%")[0])
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        found: Any = latent.columns["colours"]
        np.testing.assert_allclose(found, pixels.mean() / 2, rtol=1e-6)
        assert latent.columns["length"] == [6.0]  # label0 to label2


@pytest.mark.parametrize("options", [{}, {"dtype": "int8", "batch_size": 1}], ids=["", "int8"])
def test_an_image_whose_vector_is_no_number_is_refused_with_the_columns_name(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    small_dataset(tmp_path, range(10))
    black = tmp_path / "images/label0/black.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(black)
    dataset = small_dataset(tmp_path, range(10), append=True)
    store = encode(small_vae(), dataset, tmp_path / "s", **asked("Torn", **options))
    failed = [sample for part in store.snapshot.parts for sample in part.failed]
    assert [(s.key, s.reason) for s in failed] == [("label0/black%2Epng", "non_finite colours")]
    assert len(store) == 10


@pytest.mark.parametrize(
    ("name", "message"),
    [("Wide", r"gave length \(4, 2\) for 4 images, its `columns` say \(4, 1\)"),
     ("Broken", r"KeyError: 'caption' \(test_also.py, line \d+\)")],
)  # fmt: skip
def test_one_that_fails_or_gives_other_shapes_is_named(
    name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=f"{name}: .*{message}"):
        encode(small_vae(), small_dataset(tmp_path, range(8)), tmp_path / "s", **asked(name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Nameless", "is no encoder: AttributeError"),
        ("Constant", r"digest\(\) gives 'v1'"),
        ("Colour", r"Did you mean `--also .*:Colours`"),
        ("CPU", "is no class, but device"),
    ],
)
def test_one_without_a_digest_over_weights_and_code_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_also(f"{HERE}:{name}", CPU)


def test_memory_that_runs_out_while_it_is_built_is_no_word_on_the_class() -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load_also(f"{HERE}:Large", CPU)


def test_other_weights_or_other_code_are_another_identity_and_no_node_may_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "other_code.py"
    copy.write_text(Path(__file__).read_text().replace("* self.factor", "* 2 * self.factor"))
    monkeypatch.syspath_prepend(tmp_path)
    assert load_also("other_code:Wide", CPU).said.digest != said("Wide").digest
    one = said("Colours")

    def lighter(self: Colours) -> None:
        nn.Module.__init__(self)
        self.factor = nn.Parameter(torch.tensor(0.25))

    monkeypatch.setattr(Colours, "__init__", lighter)
    other = said("Colours")
    assert one.digest != other.digest
    with pytest.raises(StoreError, match="is another encoder here"):
        load_again((one,), CPU)
    dataset, vae = small_dataset(tmp_path, range(6)), small_vae()
    config = EncodeConfig(
        model="m", data="d", output=str(tmp_path / "s"), columns=("label",),
        also=(f"{HERE}:Colours",),
    )  # fmt: skip
    identity = identity_of(vae, config, dataset, None, lambda _: Unmeasured("no matter"))
    assert identity.options.also == (other,)
    plain = identity_of(vae, config.model_copy(update={"also": ()}), dataset, None,
                        lambda _: Unmeasured("no matter"))  # fmt: skip
    assert plain.digest != identity.digest
    with pytest.raises(ConfigError, match="two are called 'label'"):
        replace(identity.options, also=(replace(other, columns=(("label", 3),)),))


def test_a_shard_that_is_there_is_not_shown_to_it_again(tmp_path: Path) -> None:
    dataset, vae = small_dataset(tmp_path, range(20)), small_vae()
    SEEN.clear()
    store = encode(vae, dataset, tmp_path / "s", **asked("Colours"))
    assert SEEN["images"] == 20
    also = load_again(store.snapshot.identity.options.also, CPU)
    for shard in dataset.shards:
        encode_shard(vae, dataset, shard, store.snapshot.identity, store.url, also=also)
    assert SEEN["images"] == 20
    remove_garbage(store.url)
    assert len(LatentStore.open(store.url)) == 20
