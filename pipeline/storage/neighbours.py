"""What lies beside a place that is not there: for messages, which may cost one request."""

from pathlib import Path

from pipeline.errors import StorageError
from pipeline.nearest import nearest
from pipeline.storage.retry import RequestFailedError
from pipeline.storage.s3_client import request
from pipeline.storage.urls import bucket_and_key, local_path, protocol


def near(url: str) -> str | None:
    """The place beside `url` whose name is likest; None where none is like it, or none is seen."""
    parent, _, name = url.rstrip("/").rpartition("/")
    found = nearest(name, (each for each in names_beside(url) if each != name))
    return f"{parent}/{found[0]}" if found and parent else None


def refuse_file_above(url: str, flag: str) -> None:
    """Raises `StorageError` where a local folder can't be made because a file is in its way."""
    path = local_path(url)
    above = [] if path is None else [path, *path.parents]
    if file := next((each for each in above if each.is_file()), None):
        raise StorageError(f"{flag} {url}: {file} is a file. Give a folder: `{flag} URL`.")


def names_beside(url: str) -> list[str]:
    """The names of files and folders beside a place; at most 1,000 of an object storage."""
    if (path := local_path(url)) is not None:
        return _of_folder(path.parent)
    if protocol(url) not in ("s3", "s3a"):
        return []
    bucket, key = bucket_and_key(url)
    if not key:
        return []  # Other buckets may not be listed.
    above = key.rstrip("/").rpartition("/")[0]
    prefix = f"{above}/" if above else ""
    try:
        page = request("list_objects_v2", Bucket=bucket, Prefix=prefix, Delimiter="/")
    except RequestFailedError:
        return []  # What is told is the first error, not this one.
    places = [each["Prefix"] for each in page.get("CommonPrefixes", ())]
    return [each.rstrip("/").rpartition("/")[2] for each in places]


def _of_folder(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []
