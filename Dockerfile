# One image for each kind of pod, all of the same code:
#   docker build --tag vae-pipeline:0.1.0 .                                every job, on CPUs
#   docker build --build-arg VARIANT=gpu --tag vae-pipeline:0.1.0-gpu .    with CUDA
#   docker build --build-arg VARIANT=slim --tag vae-pipeline:0.1.0-slim .  without torch and Ray: MLflow's
#                                                                          server, jobs.submit, jobs.pack
# BASE must have Python 3.11, and the same in all stages: the environment links to it.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG BASE
ARG VARIANT=cpu
# An index of torch without CUDA (pytorch.org's install page names it), and its wheel's hash; the usual
# one has it with, which runs on CPUs too and is some gigabytes larger.
ARG CPU_INDEX=
ARG CPU_HASH=
ARG RELEASE=0
WORKDIR /build
# A release is made of what nobody can exchange: a tag can be moved, a hash can't.
RUN if [ "$RELEASE" = 1 ]; then \
        case "$BASE" in \
            *@sha256:*) ;; \
            *) echo "RELEASE=1: $BASE is a tag; give BASE=NAME@sha256:DIGEST" >&2; exit 1 ;; \
        esac; \
        if [ -n "$CPU_INDEX" ] && [ -z "$CPU_HASH" ]; then \
            echo "RELEASE=1: give CPU_HASH=sha256:... of the torch in CPU_INDEX" >&2; exit 1; \
        fi; \
    fi
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# The dependencies first, without our code, so that a change of it builds one small layer. All of them
# are in image/locks, with their hashes: pip refuses any other file.
COPY image/locks image/locks
RUN case "$VARIANT:$CPU_INDEX" in \
        slim:*) set -- slim ;; \
        gpu:* | cpu:) set -- base torch ;; \
        cpu:*) set -- base torch-cpu ;; \
        *) echo "VARIANT=$VARIANT: give cpu, gpu or slim" >&2; exit 1 ;; \
    esac \
    && for lock in "$@"; do \
        pip install --no-cache-dir --no-deps --require-hashes -r "image/locks/$lock.txt" || exit 1; \
    done \
    && if [ "$VARIANT" = cpu ] && [ -n "$CPU_INDEX" ]; then \
        sed -n "s/^\(torch==[^ ]*\).*/\1${CPU_HASH:+ --hash=$CPU_HASH}/p" image/locks/torch.txt \
            > torch.txt \
        && pip install --no-cache-dir --no-deps --index-url "$CPU_INDEX" -r torch.txt; \
    fi
COPY pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY jobs jobs
COPY k8s/base k8s/base
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# What is in it, as CycloneDX: every package with version and licence.
FROM build AS sbom
RUN python -m venv /opt/sbom \
    && /opt/sbom/bin/pip install --no-cache-dir --no-deps --require-hashes -r image/locks/sbom.txt \
    && /opt/sbom/bin/cyclonedx-py environment --output-reproducible --output-format JSON \
        --output-file /sbom.cdx.json /opt/venv/bin/python

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="vae-pipeline" \
    org.opencontainers.image.description="Exact, distributed training of VAEs, and verified latent stores" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.licenses="Apache-2.0"
# A number, so that Kubernetes can see that it is not root; the manifests name the same one.
RUN groupadd --gid 10001 vae \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin vae
COPY --from=build /opt/venv /opt/venv
COPY --from=sbom /sbom.cdx.json /opt/venv/sbom.cdx.json
# The root file system may be read-only: whatever a job writes beside its storage goes below /tmp.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    OMP_WAIT_POLICY=PASSIVE \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["python", "-m", "jobs"]
