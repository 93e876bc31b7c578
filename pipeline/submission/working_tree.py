"""The working tree as a zip that jobs run in: tracked and new files, none that git ignores."""

import hashlib
import io
import subprocess
import zipfile
from pathlib import Path

from pipeline.errors import ConfigError

LIMIT_BYTES = 100 * 2**20
"""Ray keeps packages in the head's memory; its own limit is 500 MiB."""


def packed(folder: Path) -> tuple[str, bytes]:
    """The name, by content, and the bytes; the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _files(folder):
            entry = zipfile.ZipInfo(str(path.relative_to(folder)))  # 1980: no time of today.
            entry.external_attr = (0o755 if path.stat().st_mode & 0o100 else 0o644) << 16
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    data = buffer.getvalue()
    if len(data) > LIMIT_BYTES:
        raise ConfigError(
            f"--ship {folder}: its files make {len(data):,} bytes, more than {LIMIT_BYTES:,}. Have "
            "git ignore data, or build an image with the code and leave --ship out."
        )
    return f"_ray_pkg_{hashlib.sha256(data).hexdigest()[:16]}.zip", data


def _files(folder: Path) -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise ConfigError(
            f"--ship {folder}: is no git checkout, whose files could be told from data. Give the "
            "checkout's folder, or leave --ship out to use the image's code."
        ) from None
    paths = [folder / name for name in found.decode().split("\0") if name]
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())
