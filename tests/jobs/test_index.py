import io
from pathlib import Path

import webdataset
from PIL import Image

from jobs.index import main
from pipeline.config import IndexConfig
from pipeline.data import Dataset


def test_hidden_tars_are_left_as_by_a_pack_and_what_macos_writes_beside_them(
    tmp_path: Path,
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    folder = tmp_path / ".in"
    for name in ("a.tar", ".b.tar", ".h/c.tar"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with webdataset.TarWriter(str(folder / name), encoder=False) as writer:
            writer.write({"__key__": name.strip("."), "png": buffer.getvalue()})
    (folder / "._a.tar").write_bytes(b"\0\5\x16\7" + bytes(99))
    config = IndexConfig(source=(str(folder),), output=str(tmp_path / "out"))
    outcome = main(config)
    assert (outcome.result["samples"], outcome.result["ignored"]) == (1, {"hidden": 2})
    named = config.model_copy(
        update={"source": (str(folder / ".b.tar"),), "output": str(tmp_path / "b")}
    )
    assert main(named).result["samples"] == 1


def test_adopting_a_tar_counts_its_samples(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with webdataset.TarWriter(str(tmp_path / "a.tar"), encoder=False) as writer:
        writer.write({"__key__": "one", "png": buffer.getvalue()})
        writer.write({"__key__": "two", "png": b"nothing"})
    config = IndexConfig(source=(str(tmp_path / "a.tar"),), output=str(tmp_path / "out"))
    outcome = main(config)
    assert outcome.exit_code == 3, "one of two is past the budget of 1 %"
    assert (outcome.result["samples"], outcome.result["rejected"]) == (1, 1)
    out = tmp_path / "out"
    train = f"`vae train --data {out} --shards-below {tmp_path} --run NAME`"
    assert f"a dataset all the same: {train}" in outcome.summary[-1]
    assert "go into another `--output URL`" in outcome.summary[-1]
    allowed = main(config.model_copy(update={"bad_fraction": 1}))
    assert allowed.summary[-1] == f"Train on it: {train}"
    # The folder that it names is one that the dataset is read with.
    assert len(list(Dataset.open(out, None, (str(tmp_path),)).keys())) == 1


def test_another_index_of_the_same_tars_leaves_that_of_the_generation_before(
    tmp_path: Path,
) -> None:
    images = []
    for shade in (10, 200):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
        images.append(buffer.getvalue())
    with webdataset.TarWriter(str(tmp_path / "a.tar"), encoder=False) as writer:
        writer.write({"__key__": "one", "png": images[0], "depth.png": images[1]})
    config = IndexConfig(source=(str(tmp_path / "a.tar"),), output=str(tmp_path / "out"))
    digests = [
        main(config.model_copy(update=changed)).result["digest"]
        for changed in ({}, {"image_extension": "depth.png"}, {"verify": "none"})
    ]
    assert len(set(digests)) == 3
    for digest, expected in zip(digests, (images[0], images[1], images[0]), strict=True):
        dataset = Dataset.open(tmp_path / "out", str(digest), (str(tmp_path),))
        index = dataset.read_index(0)
        tar = (tmp_path / "a.tar").read_bytes()
        assert tar[index.offsets[0] :][: index.sizes[0]] == expected
