"""Adopt existing WebDataset tars in place, without copying them."""

from collections.abc import Iterable

from jobs.command import REFUSED_EXIT, Outcome, run_job
from pipeline import storage
from pipeline.config import IndexConfig
from pipeline.counted import counted
from pipeline.masking import shell_word


def main(config: IndexConfig) -> Outcome:
    """Reads each tar once, and commits a manifest that names them where they lie."""
    from pipeline.packing.adopt import adopt

    result = adopt(config)
    over = result.counts.is_over(config.bad_fraction)
    images, tars = counted(result.samples, "image"), counted(result.shards, "adopted tar")
    summary = [f"{result.dataset}: {images} in {tars}."]
    summary += result.counts.summary()
    if result.rejects_url:
        summary.append(f"Rejected samples, with reasons: {result.rejects_url}")
    below = " ".join(map(shell_word, _folders(config.source)))
    train = f"`vae train --data {shell_word(config.output)} --shards-below {below} --run NAME`"
    if over:
        summary += result.counts.over_lines(config.bad_fraction)
        summary.append(
            f"What was adopted is a dataset all the same: {train}. Tars that could not be read "
            "come in by the same command once they are mended; the others, if they change, go into "
            "another `--output URL`."
        )
    else:
        summary.append(f"Train on it: {train}")
    return Outcome(result.to_json(), REFUSED_EXIT if over else 0, summary)


def _folders(sources: Iterable[str]) -> list[str]:
    """The folders that the tars lie in: they are read where they are only if each command says so.

    A folder that lies in another one of them is read with that one.
    """
    urls = {storage.absolute(url).rstrip("/") for url in sources}
    found = {url.rpartition("/")[0] if url.lower().endswith(".tar") else url for url in urls}
    return sorted(one for one in found if not any(one.startswith(f"{other}/") for other in found))


if __name__ == "__main__":
    run_job(IndexConfig, main)
