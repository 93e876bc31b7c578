from pathlib import Path

from pipeline import storage
from pipeline.packing.leftovers import find_leftovers, remove_leftovers


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
