#!/usr/bin/env bash
# Makes a stand-in for the Dockerfile's base out of Debian's own packages, where no image can be
# pulled: BASE=$(tests/image/stand_in.sh FOLDER) make image. As root; debootstrap and buildah.
# BUILDAH_STORE is passed to buildah.
set -euo pipefail
name=localhost/python-of-debian:bookworm
# The first of apt's own sources, of either format; files that are not there are no error.
sources=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2>/dev/null || true)
mirror=${DEBIAN_MIRROR:-$(sed -n 's/^URIs: *//p; s/^deb \(\[[^]]*\] \)\?\(http[^ ]*\).*/\2/p' <<<"$sources" | sed 1q)}
root=$1/rootfs
if [ ! -x "$root/usr/bin/python3" ]; then
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$root" "$mirror" >&2
    ln -sf python3 "$root/usr/bin/python"
fi
# shellcheck disable=SC2086
{
    container=$(buildah ${BUILDAH_STORE:-} from scratch)
    buildah ${BUILDAH_STORE:-} add --quiet "$container" "$root" / >&2
    buildah ${BUILDAH_STORE:-} commit --quiet "$container" "$name" >&2
    buildah ${BUILDAH_STORE:-} rm "$container" >&2
}
echo "$name"
