#!/usr/bin/env bash
# Installs the servers that tests start, or the Debian packages that it is given: Ceph's S3 gateway, Prometheus with its Pushgateway, PostgreSQL; Chromium; and tmux. Starts none.
set -euo pipefail
packages=(chromium radosgw ceph-mon ceph-osd ceph-common prometheus prometheus-pushgateway postgresql iproute2 tmux)
[ $# -eq 0 ] || packages=("$@")  # others than those that all tests need
missing=()
for package in "${packages[@]}"; do
    dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
[ "$(id -u)" -eq 0 ] || { echo "make servers: installing ${missing[*]} needs root." >&2; exit 1; }

# Debian starts a daemon on installing it, unless a policy forbids it. Ours goes again afterwards.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2
apt-get install --quiet=2 --yes --no-install-recommends "${missing[@]}" >/dev/null
echo "Installed: ${missing[*]}"
