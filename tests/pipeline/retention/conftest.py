from pathlib import Path

import pytest

from tests.servers import rgw


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder, and a prefix of a bucket."""
    if request.param == "local":
        return str(tmp_path / "place")
    server: rgw.S3Server = request.getfixturevalue("s3_server")
    return f"{server.bucket()}/place"
