"""One input: where it is, how it is named, and, if it can't be packed, why."""

import hashlib
import posixpath
from dataclasses import dataclass
from typing import Literal

from pipeline import storage
from pipeline.data.keys import key_of, without_suffix
from pipeline.errors import (
    ObjectChangedError,
    ObjectNotFoundError,
    SampleError,
    UnreadableError,
)
from pipeline.sources.archives import MemberPlace, read_member

MAX_FILE_BYTES = 2**30
"""No single image is longer: a zip member that claims more is a bomb."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One input that may be an image: an object, a member of an archive, a row of a table."""

    path: str
    """Relative to its source: what its key and its label are made from."""
    url: str
    size: int
    etag: str
    offset: int = -1
    """Of a tar's member: where its bytes begin; of a table's row: its number; else -1."""
    member: str = ""
    """Of a zip's member: its name; of a table's row: the image's column."""
    inner: str = ""
    """The archive in the archive at `url` that holds it; see `archives.inner_of`."""
    status: Literal["", "ignored", "rejected"] = ""
    """What the listing decided already: such an input is never opened."""
    reason: str = ""
    message: str = ""
    row_group: str = ""
    """Inputs of one group are packed side by side: the rows of a table's row group."""
    given_label: str | None = None
    """A table's; it counts before the folder's name."""
    annotation: str = ""
    """What a table says of it, as `Annotation.to_text` gives it."""

    @property
    def key(self) -> str:
        """The whole path, escaped: what webdataset would cut at or misread."""
        return key_of(self.path)

    @property
    def label(self) -> str | None:
        """What is said of it, else the name of the first folder; of a table's row never that."""
        if self.given_label is not None or self.row_group:
            return self.given_label
        path = self.path.lstrip("/")
        if path.startswith(".") or "/." in path:  # `..` is no folder's name
            path = posixpath.normpath(f"/{path}")[1:]
        first, slash, _ = path.partition("/")
        return first if slash else None

    @property
    def place(self) -> str:
        """URL and member, for messages and for finding the file again."""
        whole = self.offset < 0 and not self.member
        return self.url if whole else f"{self.url}#{self.path}"

    @property
    def order(self) -> bytes:
        """Inputs are packed in the order of this hash: sorted names would sort the classes too."""
        text = self.row_group or key_of(without_suffix(self.path))
        return hashlib.blake2b(text.encode(), digest_size=8).digest()

    def read(self) -> bytes:
        """The bytes of a file or member. Raises `SampleError` if they can't be had whole."""
        if self.size > MAX_FILE_BYTES:
            raise SampleError("bomb", f"{self.size} bytes, over {MAX_FILE_BYTES}")
        place = MemberPlace(self.offset, self.member, self.inner, self.size)
        try:
            if self.offset >= 0 or self.member:
                data = read_member(self.url, self.etag, place)
            else:
                with storage.staying():
                    data = storage.read(self.url, 0, self.size)
        except ObjectNotFoundError as error:
            raise SampleError("missing", str(error)) from None
        except (ObjectChangedError, UnreadableError) as error:
            # An archive could be read when it was listed.
            raise SampleError("changed", f"{error} `--append` reads it again.") from None
        if len(data) != self.size:
            raise SampleError("changed", f"holds {len(data)} bytes, was listed with {self.size}")
        return data
