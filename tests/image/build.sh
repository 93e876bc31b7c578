#!/usr/bin/env bash
# Builds the image with the engine that is here, and runs jobs.doctor in it as the image's own user.
# BASE replaces the Dockerfile's base, CPU_INDEX and CPU_HASH name its torch without CUDA; BUILD_FLAGS
# goes to the build as it is: mirrors, mounts. RELEASE=1 refuses a base that is named by a tag, and a
# working tree with changes.
set -euo pipefail
cd "$(dirname "$0")/../.."
variant=${VARIANT:-cpu}
version=${VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)}
tag=vae-pipeline:$version
[ "$variant" = cpu ] || tag=$tag-$variant
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
arguments=(--build-arg "VARIANT=$variant" --build-arg "VERSION=$version" --build-arg "REVISION=$revision")
for name in BASE CPU_INDEX CPU_HASH RELEASE; do
    [ -z "${!name:-}" ] || arguments+=(--build-arg "$name=${!name}")
done
if [ "${RELEASE:-}" = 1 ]; then
    [[ "${BASE:-}" = *@sha256:* ]] || { echo "RELEASE=1: give BASE=NAME@sha256:DIGEST, not a tag" >&2; exit 2; }
    [ -z "$(git status --porcelain)" ] || { echo "RELEASE=1: commit or drop your changes first" >&2; exit 2; }
fi

if docker info >/dev/null 2>&1; then engine=docker
elif podman info >/dev/null 2>&1; then engine=podman
elif command -v buildah >/dev/null; then engine=buildah
else
    echo "make image: no engine is here that builds images. Install docker, podman or buildah." >&2
    exit 69
fi
echo "Building $tag with $engine ..." >&2
case $engine in
    docker | podman)
        # shellcheck disable=SC2086
        $engine build "${arguments[@]}" ${BUILD_FLAGS:-} --tag "$tag" .
        run=("$engine" run --rm --read-only --tmpfs /tmp --cap-drop ALL --entrypoint "" "$tag")
        ;;
    buildah)
        # chroot: works in a container without rights of its own, as CI often is.
        # shellcheck disable=SC2086
        buildah ${BUILDAH_STORE:-} bud --isolation chroot --format docker "${arguments[@]}" ${BUILD_FLAGS:-} --tag "$tag" .
        # shellcheck disable=SC2086
        container=$(buildah ${BUILDAH_STORE:-} from --pull-never "localhost/$tag")
        # shellcheck disable=SC2086,SC2064
        trap "buildah ${BUILDAH_STORE:-} rm $container >/dev/null" EXIT
        # shellcheck disable=SC2206
        run=(buildah ${BUILDAH_STORE:-} run --isolation chroot "$container" --)
        ;;
esac
"${run[@]}" bash -c 'set -e
    [ "$(id --user):$(id --group)" = 10001:10001 ] || { echo "runs as $(id)" >&2; exit 1; }
    for program in cc gcc g++ make; do
        ! command -v $program || { echo "the image holds a compiler" >&2; exit 1; }
    done
    for program in mlflow bash; do command -v $program >/dev/null; done
    grep -q "\"bomFormat\": \"CycloneDX\"" /opt/venv/sbom.cdx.json
    [ -z "$(find / -xdev -path "*/pip/http*" -type f -print -quit 2>/dev/null)" ]'
case $variant in
    slim) "${run[@]}" bash -c '! command -v ray >/dev/null && ! python -c "import torch" 2>/dev/null' ;;
    *) "${run[@]}" bash -c 'command -v ray >/dev/null && python -c "import torch"' ;;
esac
"${run[@]}" python -m jobs doctor --storage /tmp/doctor
echo "$tag is built; jobs.doctor ran in it as its own user." >&2
