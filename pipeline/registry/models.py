"""MLflow's model registry: bundles in, bundles out, aliases resolved to versions once."""

import contextlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline import storage
from pipeline.errors import ModelError, ObjectNotFoundError, PipelineError
from pipeline.exchange.model_folder import load_folder
from pipeline.masking import shell_word
from pipeline.nearest import did_you_mean, nearest
from pipeline.tracking.mlflow_client import (
    asked_uri,
    check_artifacts_root,
    holds_nothing,
    mlflow_client,
    name_is,
    tracking_errors,
    tracking_uri,
)
from pipeline.vae import VAE, load_bundle
from pipeline.vae.bundle import FILES, RECEIPT, verify_bundle

SCHEME = "models:/"

_PLACE = "data/bundle"
"""Where a bundle lies in the pyfunc that MLflow makes of it."""
_ARTIFACTS = frozenset(
    ("", "file", "mlflow-artifacts", "s3", "gs", "abfss", "wasbs", "hdfs", "dbfs")
)
"""Schemes of artifact stores. Not http and ftp, which would fetch from any address."""


@dataclass(frozen=True)
class RegisteredModel:
    """One version of a registered model: what an alias meant at the moment of asking."""

    name: str
    version: int
    source: str
    run_id: str | None = None
    digest: str | None = None
    """Of the bundle that was registered; None where whoever registered it left none."""

    @property
    def uri(self) -> str:
        """The URI that always means this version."""
        return f"{SCHEME}{self.name}/{self.version}"


def resolve(uri: str, *, flag: str = "--model") -> RegisteredModel:
    """The version behind `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises `ModelError` saying which names, aliases or versions there are; it names `flag` for it.
    """
    name, alias, version = _parse(uri)
    where = asked_uri()
    if holds_nothing(where):
        raise _no_model(uri, name, where, (), flag)
    client = mlflow_client(where)
    with tracking_errors(where):
        known = client.search_model_versions(name_is(name))
        if not known:
            names = [model.name for model in client.search_registered_models()]
            raise _no_model(uri, name, where, names, flag)
        if alias is not None:
            aliases = client.get_registered_model(name).aliases
            if alias not in aliases:
                there = ", ".join(f"@{a} (version {v})" for a, v in sorted(aliases.items()))
                newest = max(int(each.version) for each in known)
                instead = f"@{next(iter(sorted(aliases)))}" if aliases else f"/{newest}"
                meant = shell_word(SCHEME + name + instead)
                promotion = (
                    f" `python -m jobs.models --promote {meant}` makes a champion."
                    if alias == "champion"
                    else ""
                )
                raise ModelError(
                    f"{uri}: model {name!r} has no alias {alias!r}; it has: {there or 'none'}. "
                    f"Versions: {', '.join(sorted(str(v.version) for v in known))}.{promotion} "
                    f"Or name one of these, as `{flag} {meant}`."
                )
            version = aliases[alias]
        for found in known:
            if str(found.version) == str(version):
                told = found.tags.get("digest")
                return RegisteredModel(name, int(found.version), found.source, found.run_id, told)
    raise ModelError(
        f"{uri}: model {name!r} has no version {version}; it has "
        f"{', '.join(sorted(str(v.version) for v in known))}. Name one of these, as "
        f"`{flag} {shell_word(f'{SCHEME}{name}/{max(int(each.version) for each in known)}')}`."
    )


def _no_model(uri: str, name: str, where: str, names: Sequence[str], flag: str) -> ModelError:
    likely = nearest(name, names)
    return ModelError(
        f"{uri}: MLflow at {storage.shown(where)} has no model {name!r}; its models: "
        f"{', '.join(names) or 'none'}."
        + did_you_mean(f"{flag} {shell_word(uri.replace(name, likely[0], 1))}" if likely else None)
        + " `python -m jobs.models` lists them; `export MLFLOW_TRACKING_URI=URI` names "
        "another MLflow."
    )


def load_model(uri: str, allow_custom: Collection[str] = (), *, digest: str | None = None) -> VAE:
    """The VAE behind a registry URI, or in a folder as `load_folder` reads it."""
    if not uri.startswith(SCHEME):
        return load_folder(uri, allow_custom, digest=digest)
    model = resolve(uri)
    with bundle_of(model) as folder:
        return load_bundle(str(folder), allow_custom, digest=digest or model.digest)


@contextlib.contextmanager
def bundle_of(model: RegisteredModel) -> Iterator[Path]:
    """A local copy of a registered model's bundle, which goes with the block.

    Only the files of a bundle are fetched, only from the artifacts of the version's own run.
    """
    import mlflow

    where = tracking_uri()
    _check_source(model, where)
    with storage.temporary_folder("vae-model-") as folder:
        try:
            for name in (*FILES, RECEIPT):
                url = f"{model.source}/{_PLACE}/{name}"
                if urlsplit(model.source).scheme in ("", "file"):
                    (folder / name).write_bytes(_read_inside(url, model.source))
                    continue
                with tracking_errors(where):
                    mlflow.artifacts.download_artifacts(
                        url, dst_path=str(folder), tracking_uri=where, registry_uri=where
                    )
        except ObjectNotFoundError as error:
            raise ModelError(f"{model.uri}: was not registered by this program: {error}") from None
        yield folder


def _check_source(model: RegisteredModel, where: str) -> None:
    """A version's source is free text; what is fetched must be an artifact of the version's run."""
    with tracking_errors(where):
        run = model.run_id and mlflow_client(where).get_run(model.run_id)
    root = run.info.artifact_uri.rstrip("/") if run else None
    inside = root is not None and model.source.startswith(f"{root}/")
    if not inside or urlsplit(model.source).scheme not in _ARTIFACTS:
        raise ModelError(
            f"{model.uri}: its source {storage.shown(model.source)} is no artifact of its own run "
            f"({root and storage.shown(root)}) in an artifact store. Whoever registered it so did "
            "not use this program: nothing was fetched. Register the bundle with jobs.models."
        )
    storage.below(str(root), model.source[len(str(root)) + 1 :])
    check_artifacts_root(model.source, where)


def _read_inside(url: str, root: str) -> bytes:
    """A local artifact's bytes, unless a link leads to them from elsewhere."""
    path, folder = storage.local_path(url), storage.local_path(root)
    assert path is not None, "asked for local files alone"
    assert folder is not None, "as its root"
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ModelError(f"{url}: is a link that leads out of {root}: it was not followed.")
    return storage.read(str(path))


def register(
    bundle_url: str,
    name: str,
    run_id: str,
    tags: Mapping[str, str],
    *,
    description: str = "",
    allow_custom: Collection[str] = (),
) -> RegisteredModel:
    """Registers a bundle as a pickle-free pyfunc; no alias moves.

    `description` says in MLflow what the version is. A version of the same run and digest is used
    again: registering twice makes no second one.
    """
    where = tracking_uri()
    client = mlflow_client(where)
    with tracking_errors(where):
        _create_if_absent(client, name)
        for found in client.search_model_versions(name_is(name)):
            if found.run_id == run_id and found.tags.get("digest") == tags["digest"]:
                return RegisteredModel(name, int(found.version), found.source, found.run_id)
        # By digest: one run may register several checkpoints.
        place = f"models/{tags['digest'][:16]}"
        with tempfile.TemporaryDirectory(prefix="vae-register-") as scratch:
            folder = Path(scratch) / "model"
            save_pyfunc(bundle_url, folder, allow_custom)
            check_artifacts_root(client.get_run(run_id).info.artifact_uri, where)
            client.log_artifacts(run_id, str(folder), place)
        source = f"{client.get_run(run_id).info.artifact_uri}/{place}"
        version = client.create_model_version(
            name, source, run_id, tags=dict(tags), description=description or None
        )
    return RegisteredModel(name, int(version.version), source, run_id)


def is_registered(uri: str, version: int, digest: str | None) -> bool:
    """Whether the name in `uri` has this version still, of the bundle of that digest.

    A registry that was restored from an older copy lacks it, or has another model there. Raises
    `TrackingError` if MLflow can't be asked.
    """
    name, _, _ = _parse(uri)
    where = tracking_uri()
    with tracking_errors(where):
        return any(
            int(found.version) == version and found.tags.get("digest") in (None, digest)
            for found in mlflow_client(where).search_model_versions(name_is(name))
        )


def model_tags(vae: VAE) -> dict[str, str]:
    """A version's tags that follow from the model: digest, and what its ELBO is an ELBO of."""
    preprocess = vae.preprocess.held_out().model_dump(mode="json")
    return {
        "digest": str(vae.digest),
        "preprocess": json.dumps(preprocess, sort_keys=True),
        "measure": vae.likelihood.measure,
    }


def version_tags(model: RegisteredModel) -> dict[str, str]:
    """What is known of a version, as `register` and promotion wrote it; and its MLflow run."""
    where = tracking_uri()
    with tracking_errors(where):
        found = mlflow_client(where).get_model_version(model.name, str(model.version))
    return {**found.tags, "run_id": found.run_id or ""}


def save_pyfunc(bundle_url: str, folder: Path, allow_custom: Collection[str] = ()) -> None:
    """Writes a bundle as an MLflow pyfunc: the bundle's files and the name of our loader module.

    No pickle and no code goes with it: whoever loads it has installed `vae-pipeline[pull]`.
    """
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    vae = load_bundle(bundle_url, allow_custom)
    size, channels = vae.preprocess.image_size, vae.preprocess.channels
    depth, *grid = vae.latent_shape
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, channels, size, size))]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, 2 * depth, *grid))]),
    )
    with tempfile.TemporaryDirectory(prefix="vae-bundle-") as scratch, warnings.catch_warnings():
        # The signature is exact as it stands; an example image would only repeat it.
        warnings.filterwarnings("ignore", message=".*input example.*")
        copy = Path(scratch) / "bundle"
        copy_bundle(bundle_url, copy)
        mlflow.pyfunc.save_model(
            path=str(folder),
            loader_module="pipeline.pyfunc",
            data_path=str(copy),
            signature=signature,
            pip_requirements=["vae-pipeline[pull]"],
        )


def pull(uri: str, output: str) -> tuple[RegisteredModel, str]:
    """Copies a registered bundle into a folder, checksums verified; returns it and its digest.

    The folder may be new, empty, or hold the same bundle already; anything else is refused.
    """
    model = resolve(uri)
    target = Path(output)
    with bundle_of(model) as folder:
        digest = verify_bundle(str(folder))
        if model.digest not in (None, digest):
            raise ModelError(
                f"{model.uri}: was registered with digest {model.digest}, its bundle has {digest}: "
                "somebody replaced it. Nothing was copied; register the bundle that you mean anew."
            )
        if target.is_dir() and any(target.iterdir()):
            found = _digest_of(target)
            if found != digest:
                raise ModelError(
                    f"{output}: holds {found or 'other files'}, not {model.uri} ({digest}). "
                    "Give an empty or new folder: `--output FOLDER`."
                )
            return model, digest
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            copy_bundle(str(folder), scratch)
            scratch.chmod(0o755)
            scratch.replace(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return model, digest


def copy_bundle(source_url: str, target: Path) -> None:
    """Copies a bundle's own files, and nothing that lies beside them, into a local folder."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (*FILES, RECEIPT):
        (target / name).write_bytes(storage.read(storage.join(source_url, name)))


_ABOUT = (
    "Variational autoencoders by vae-pipeline. `pipeline.load_model` loads one; as a pyfunc it "
    "takes images uint8 [N, C, H, W] and gives moments. The alias `candidate` is the best so far "
    "on equal terms, `champion` the one that was promoted."
)


def _create_if_absent(client: Any, name: str) -> None:
    """Asking first would let two first registrations at once both find none."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=_ABOUT)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _digest_of(folder: Path) -> str | None:
    try:
        return verify_bundle(str(folder))
    except PipelineError:
        return None


def _parse(uri: str) -> tuple[str, str | None, str | None]:
    """Name, alias and version of a registry URI; alias or version is None."""
    rest = uri.removeprefix(SCHEME)
    name, at, alias = rest.partition("@")
    if at and name and alias:
        return name, alias, None
    name, slash, version = rest.partition("/")
    if uri.startswith(SCHEME) and slash and name and version.isdigit():
        return name, None, version
    raise ModelError(f"{uri}: is neither models:/NAME@ALIAS nor models:/NAME/VERSION.")
