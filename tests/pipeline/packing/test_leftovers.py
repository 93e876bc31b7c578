from pathlib import Path

import pytest

from pipeline import storage
from pipeline.packing import commit as pack_commit
from pipeline.packing.leftovers import find_leftovers, remove_leftovers
from pipeline.packing.pack import pack
from tests.pipeline.packing.test_pack import config, png, write


def test_what_nobody_wrote_to_since_it_was_found_is_removed_and_nothing_else(
    tmp_path: Path,
) -> None:
    output = str(tmp_path)
    dead, live, published, others = (
        storage.scratch(f"{output}/{name}")
        for name in ("shards/a.tar", "train/shards/b.tar", "index/c.arrow", "latents/d.arrow")
    )
    for path in (dead, live, published, others):
        path.write_bytes(b"half")
    found = find_leftovers(output)
    live.write_bytes(b"half and more")
    storage.publish(f"{output}/index/c.arrow", published)
    later = storage.scratch(f"{output}/shards/e.tar")
    later.write_bytes(b"half")
    remove_leftovers(found)
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {live, tmp_path / "index/c.arrow", others, later}


def test_leftovers_are_found_wherever_packing_writes_and_another_datasets_are_left_alone(
    tmp_path: Path,
) -> None:
    """At the roots of dataset and splits lie half written pointers."""
    output = str(tmp_path)
    ours = ["manifest.json", "pack.json", "rejects.jsonl", "train/manifest.json"]
    ours += ["holdout/manifest.json", "holdout/index/a.arrow", "plans/000003/u.json"]
    for name in (*ours, "nested/manifest.json", "nested/shards/b.tar"):
        storage.scratch(f"{output}/{name}").write_bytes(b"half")
    remove_leftovers(find_leftovers(output))
    left = {path.parent.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {Path("nested"), Path("nested/shards")}


@pytest.mark.parametrize("appends", [False, True])
def test_the_plan_of_a_pack_that_was_killed_after_its_commit_goes_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, appends: bool
) -> None:
    source, output = write(tmp_path / "in", {"0.png": png(0)}), tmp_path / "out"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pack_commit, "remove_plans", killed)
        with pytest.raises(KeyboardInterrupt):
            pack(config(source, output))
    assert (output / "plans/000001.json").exists()
    if appends:
        write(tmp_path / "in", {"1.png": png(1)})
    pack(config(source, output, append=True))
    assert list((output / "plans").iterdir()) == []
