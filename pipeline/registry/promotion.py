"""What aliases mean: the champion beat the one before it on equal terms, or is that one again; the
candidate is the best version of its name, the newest of equals."""

import json
import logging
import math
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from pipeline.data import Dataset
from pipeline.errors import ModelError
from pipeline.evaluation.reading import in_order
from pipeline.evaluation.sums import evaluate_elbo
from pipeline.registry.models import RegisteredModel, load_model, model_tags, resolve, version_tags
from pipeline.tracking.mlflow_client import mlflow_client, tracking_errors, tracking_uri

logger = logging.getLogger(__name__)

CHAMPION, CANDIDATE = "champion", "candidate"
HISTORY_TAG = "champions"
"""On the registered model: the versions that have been champion, the present one last."""

_BATCH = 100


@dataclass(frozen=True)
class Standing:
    """What a version is judged by: its held-out ELBO (nats per image), and of what it is one."""

    model: RegisteredModel
    elbo: float | None
    terms: dict[str, str | None]
    run: str | None


def promote(
    uri: str, data: str | None = None, allow_custom: Collection[str] = ()
) -> RegisteredModel:
    """Makes a version the champion if its held-out ELBO is above the present champion's.

    The ELBOs are those of the registry, or, with `data`, measured now on that dataset. Raises
    `ModelError` if it is not better, or if the two numbers are not of the same thing.
    """
    model = resolve(uri)
    past = _champions(model.name)
    if past and past[-1] == model.version:
        logger.info("%s is the champion already", model.uri)
        return model
    rival = resolve(f"models:/{model.name}/{past[-1]}") if past else None
    for each in filter(None, (model, rival) if data else ()):
        _measure(each, str(data), allow_custom)
    mine = _standing(model)
    if mine.elbo is None:
        raise ModelError(
            f"{model.uri}: the registry has no held-out ELBO of it. Give --data HOLDOUT to measure."
        )
    if rival is not None:
        _refuse_unless_better(mine, _standing(rival))
    _crown(model.name, [*past, model.version])
    return model


def place_alias(model: RegisteredModel, asked: str | None) -> str | None:
    """Lets an alias mean a new version; the alias that does now, None where none moved.

    asked: an alias by name, which moves whatever it meant: naming it is the word. None: the
    candidate, which moves to the first version of a name, to a better one on equal terms, and
    along a run that goes on and has no hold-out.
    """
    if asked is not None:
        _point(model, asked)
        return asked
    where = tracking_uri()
    with tracking_errors(where):
        aliases = mlflow_client(where).get_registered_model(model.name).aliases
    if CANDIDATE in aliases and int(aliases[CANDIDATE]) != model.version:
        present = resolve(f"models:/{model.name}/{aliases[CANDIDATE]}")
        why = _why_not_above(_standing(model), _standing(present))
        if why is not None:
            logger.warning(
                "%s stays version %d: of version %d %s. To move it anyhow, train or register with "
                "--tracking.model %s@%s.",
                f"models:/{model.name}@{CANDIDATE}",
                present.version,
                model.version,
                why,
                model.name,
                CANDIDATE,
            )
            return None
    _point(model, CANDIDATE)
    return CANDIDATE


def _why_not_above(mine: Standing, other: Standing) -> str | None:
    """Why one version does not follow another as candidate; None: it does."""
    if mine.elbo is None and other.elbo is None:
        same = mine.run is not None and mine.run == other.run
        return None if same else "nothing says that it is better, as neither has a held-out ELBO"
    for name, value in mine.terms.items():
        if value != other.terms[name]:
            return f"the {name} is another, so their ELBOs can't be compared"
    if mine.elbo is None:
        return "no held-out ELBO is known"
    if other.elbo is not None and mine.elbo <= other.elbo:
        return f"the held-out ELBO, {mine.elbo:.3f}, is not above {other.elbo:.3f}"
    return None


def _point(model: RegisteredModel, alias: str) -> None:
    where = tracking_uri()
    with tracking_errors(where):
        client = mlflow_client(where)
        client.set_registered_model_alias(model.name, alias, str(model.version))
    logger.info("models:/%s@%s is version %d", model.name, alias, model.version)


def roll_back(name: str) -> RegisteredModel:
    """Makes the champion before the present one the champion again."""
    past = _champions(name)
    if len(past) < 2:
        raise ModelError(
            f"model {name!r}: there is no champion before {past or 'any'}. Choose one with "
            "--promote."
        )
    _crown(name, past[:-1])
    return resolve(f"models:/{name}/{past[-2]}")


def _refuse_unless_better(mine: Standing, other: Standing) -> None:
    what = f"{mine.model.uri} and the champion, version {other.model.version},"
    for name, value in mine.terms.items():
        if value != other.terms[name]:
            advice = (
                "Give --data HOLDOUT to measure both on one."
                if name == "holdout_digest"
                else "Such numbers are not of the same thing: give --tracking.model another name."
            )
            raise ModelError(
                f"{what} can't be compared: {name} is {value} against {other.terms[name]}. {advice}"
            )
    assert mine.elbo is not None, "a version without figures was refused before"
    if other.elbo is None or mine.elbo <= other.elbo:
        theirs = "none" if other.elbo is None else f"{other.elbo:.3f}"
        raise ModelError(
            f"{mine.model.uri}: its held-out ELBO of {mine.elbo:.3f} nats does not beat the "
            f"champion's {theirs} (version {other.model.version}). "
            "Nothing was changed."
        )


def _standing(model: RegisteredModel) -> Standing:
    tags = version_tags(model)
    # A diverged model's is no number, and as good as none.
    elbo = float(tags.get("holdout_elbo") or "nan")
    terms = {name: tags.get(name) for name in ("holdout_digest", "preprocess", "measure")}
    return Standing(model, elbo if math.isfinite(elbo) else None, terms, tags.get("run"))


def _measure(model: RegisteredModel, data: str, allow_custom: Collection[str]) -> None:
    """Measures the exact ELBO on a dataset and writes it to the version's tags."""
    vae, dataset = load_model(model.uri, allow_custom), Dataset.open(data)
    with closing(in_order(dataset, vae.preprocess, _BATCH)) as loader:
        means = evaluate_elbo(vae, loader, 0, _BATCH).means()
    found = {"holdout_digest": dataset.digest, "holdout_elbo": repr(means["elbo"])}
    where = tracking_uri()
    client = mlflow_client(where)
    with tracking_errors(where):
        for name, value in {**model_tags(vae), **found}.items():
            client.set_model_version_tag(model.name, str(model.version), name, value)


def _champions(name: str) -> list[int]:
    """The versions that have been champion, in order; the last is the one that the alias means."""
    where = tracking_uri()
    client = mlflow_client(where)
    with tracking_errors(where):
        model = client.get_registered_model(name)
    past: list[int] = json.loads(model.tags.get(HISTORY_TAG, "[]"))
    present: Any = model.aliases.get(CHAMPION)
    if present is not None and (not past or past[-1] != int(present)):
        past.append(int(present))  # Somebody moved the alias by hand.
    return past


def _crown(name: str, champions: list[int]) -> None:
    where = tracking_uri()
    client = mlflow_client(where)
    with tracking_errors(where):
        client.set_registered_model_tag(name, HISTORY_TAG, json.dumps(champions))
        client.set_registered_model_alias(name, CHAMPION, str(champions[-1]))
