"""What the registry holds: models and versions, and where each came from and went to."""

import hashlib
import logging
import re
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import TrackingError
from pipeline.exchange.model_folder import load_folder
from pipeline.registry.models import RegisteredModel, model_tags, register, resolve, version_tags
from pipeline.registry.promotion import elbo_of, place_alias
from pipeline.tracking.mlflow_client import (
    asked_uri,
    holds_nothing,
    mlflow_client,
    name_is,
    tracking_errors,
    tracking_uri,
)
from pipeline.tracking.mlflow_run import TrackedRun
from pipeline.vae import save_bundle
from pipeline.vae.bundle import is_bundle

logger = logging.getLogger(__name__)

_STORE_TAG = "store."
_EXPERIMENT = "imported"
"""In MLflow: of the runs that stand for models from elsewhere."""


@dataclass(frozen=True)
class Version:
    """One version of a model, with what its tags say; `registered` as ISO 8601, in UTC."""

    version: int
    aliases: Sequence[str]
    digest: str | None
    run: str | None
    dataset_digest: str | None
    holdout_elbo: float | None
    registered: str


@dataclass(frozen=True)
class Model:
    """A registered model and its versions, the newest first."""

    name: str
    versions: Sequence[Version]


def list_models() -> list[Model]:
    """Every registered model; an MLflow that is not there yet is not made."""
    where = asked_uri()
    if holds_nothing(where):
        return []
    client = mlflow_client(where)
    with tracking_errors(where):
        models = []
        for model in client.search_registered_models(order_by=["name"]):
            versions = client.search_model_versions(name_is(model.name))
            aliases: dict[int, list[str]] = {}
            for alias, version in sorted(model.aliases.items()):
                aliases.setdefault(int(version), []).append(alias)
            rows = [_row(found, aliases.get(int(found.version), [])) for found in versions]
            rows.sort(key=lambda row: -row.version)
            models.append(Model(model.name, rows))
        return models


def register_folder(
    url: str, name: str | None = None, allow_custom: Collection[str] = ()
) -> RegisteredModel:
    """Registers a bundle that no run of this MLflow made, or a diffusers autoencoder.

    name: NAME, and no alias moves; NAME@ALIAS, and this alias does; None: the folder's own name.
    The same folder again is the same version. Its figures are unknown here, so promotion measures
    it (`--data`).
    """
    called, _, alias = (name or _called(url)).partition("@")
    with tempfile.TemporaryDirectory(prefix="vae-bundle-") as scratch:
        vae, bundle = load_folder(url, allow_custom), url
        if not is_bundle(url):
            save_bundle(vae, scratch, vae.metadata)
            bundle = scratch
        known = vae.metadata or {}
        kept = {name: str(known[name]) for name in _FACTS if known.get(name) is not None}
        where = tracking_uri()
        with tracking_errors(where):
            run = TrackedRun(where, _EXPERIMENT, f"bundle {url}", url, kept)
            run.set_status("FINISHED")
        tags = {**model_tags(vae), **kept, "source": url}
        model = register(bundle, called, run.run_id, tags, allow_custom=allow_custom)
        if alias:
            place_alias(model, alias)
        return model


def _called(url: str) -> str:
    """A folder's own name as far as models may have it; a bundle's is its run's."""
    parts = [part for part in url.rstrip("/").split("/") if part not in ("bundle", "vae", "")]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", parts[-1]).strip("-.") if parts else "model"


@dataclass(frozen=True)
class Lineage:
    """Dataset -> run -> model -> latent stores, of one version: None where nobody noted it."""

    model: str
    digest: str | None
    run: str | None
    run_id: str | None
    data: str | None
    dataset_digest: str | None
    holdout_digest: str | None
    holdout_elbo: str | None
    git_revision: str | None
    source: str | None
    stores: Sequence[str]


def lineage(uri: str) -> Lineage:
    """Where a version came from and went to."""
    model = resolve(uri, flag="--lineage")
    tags = version_tags(model)
    stores = sorted(value for name, value in tags.items() if name.startswith(_STORE_TAG))
    return Lineage(
        model=model.uri,
        digest=tags.get("digest"),
        run=tags.get("run"),
        run_id=tags.get("run_id"),
        data=tags.get("data"),
        dataset_digest=tags.get("dataset_digest"),
        holdout_digest=tags.get("holdout_digest"),
        holdout_elbo=tags.get("holdout_elbo"),
        git_revision=tags.get("git_revision"),
        source=tags.get("source"),
        stores=stores,
    )


def note_store(model: RegisteredModel, store: str) -> None:
    """Remembers at a version that a latent store was made with it; MLflow's absence costs that."""
    where = tracking_uri()
    key = _STORE_TAG + hashlib.sha256(store.encode()).hexdigest()[:16]
    try:
        with tracking_errors(where):
            client = mlflow_client(where)
            client.set_model_version_tag(model.name, str(model.version), key, store)
    except TrackingError as error:
        logger.warning("%s is not listed at %s: %s", store, model.uri, error)


_FACTS = ("run", "dataset_digest", "steps", "images_seen")


def _row(found: Any, aliases: list[str]) -> Version:
    when = datetime.fromtimestamp(found.creation_timestamp / 1000, UTC)
    return Version(
        version=int(found.version),
        aliases=aliases,
        digest=found.tags.get("digest"),
        run=found.tags.get("run"),
        dataset_digest=found.tags.get("dataset_digest"),
        holdout_elbo=elbo_of(found.tags),
        registered=when.isoformat(timespec="seconds"),
    )
