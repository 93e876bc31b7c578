import io
from pathlib import Path

import webdataset
from PIL import Image

from jobs.index import main
from pipeline.config import IndexConfig


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
    assert f"a dataset all the same: `vae train --data {out} --run NAME`" in outcome.summary[-1]
    assert "go into another `--output URL`" in outcome.summary[-1]
    allowed = main(config.model_copy(update={"bad_fraction": 1}))
    assert allowed.summary[-1] == f"Train on it: `vae train --data {out} --run NAME`"
