"""The contract of the image `minio/minio` as overlays/dev uses it, kept by Ceph's gateway.

A folder of /data is a bucket; user and password come from MINIO_ROOT_USER and _PASSWORD; it listens
on port 9000, and answers /minio/health/ready.
"""

import json
import os
import signal
from pathlib import Path

from tests.servers import rgw

DATA = Path("/data")
_EVERYONE = {
    "Version": "2012-10-17",
    "Statement": [{
        "Effect": "Allow", "Principal": "*", "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::minio/*",
    }],
}  # fmt: skip


def main() -> None:
    """Serves until a signal; what was stored lies in memory, and is gone then."""
    os.environ["HOME"] = str(DATA)
    buckets = [path.name for path in DATA.iterdir() if path.is_dir() and path.name != ".ceph"]
    user = os.environ["MINIO_ROOT_USER"], os.environ["MINIO_ROOT_PASSWORD"]
    server = rgw.start(DATA / ".ceph", listen="0.0.0.0", port=9000, user=user)
    client = server.client()
    for bucket in buckets:
        client.create_bucket(Bucket=bucket)
    # The probe's path is an object like another, which everyone may read.
    client.create_bucket(Bucket="minio")
    client.put_bucket_policy(Bucket="minio", Policy=json.dumps(_EVERYONE))
    client.put_object(Bucket="minio", Key="health/ready", Body=b"")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    server.stop()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
