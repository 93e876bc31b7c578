# One image for every job, for Ray's nodes and for MLflow's server.
#   docker build --tag vae-pipeline:0.1.0 .                              CPUs
#   docker build --build-arg VARIANT=gpu --tag vae-pipeline:0.1.0-gpu .  GPUs: torch with CUDA
# BASE must have Python 3.11 or newer, and the same in both stages: the environment links to it.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG VARIANT=cpu
# An index of torch without CUDA (pytorch.org's install page names it); the usual one has it with,
# which runs on CPUs too and is some gigabytes larger.
ARG CPU_INDEX=
WORKDIR /build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# The dependencies first, without our code, so that a change of it builds one small layer.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir pipeline jobs \
    && case "$VARIANT" in \
        cpu) index="${CPU_INDEX:+--extra-index-url=$CPU_INDEX}" ;; \
        gpu) index= ;; \
        *) echo "VARIANT=$VARIANT: give cpu or gpu" >&2; exit 1 ;; \
    esac \
    && pip install --no-cache-dir ${index:+"$index"} --constraint constraints.txt '.[cluster]' \
    && pip uninstall --yes vae-pipeline
COPY pipeline pipeline
COPY jobs jobs
COPY k8s/base k8s/base
RUN pip install --no-cache-dir --no-deps .

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
# The root file system may be read-only: whatever a job writes beside its storage goes below /tmp.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    OMP_WAIT_POLICY=PASSIVE \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["python", "-m", "jobs"]
