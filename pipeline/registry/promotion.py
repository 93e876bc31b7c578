"""What aliases mean: the champion beat the one before it on equal terms, or is that one again; the
candidate is the best version of its name, the first of equals, or the one that somebody named."""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from pipeline.data import Dataset
from pipeline.errors import ModelError
from pipeline.evaluation.reading import in_order
from pipeline.evaluation.sums import evaluate_elbo
from pipeline.masking import shell_word
from pipeline.registry.models import RegisteredModel, load_model, model_tags, resolve, version_tags
from pipeline.tracking.mlflow_client import mlflow_client, name_is, tracking_errors, tracking_uri

logger = logging.getLogger(__name__)

CHAMPION, CANDIDATE = "champion", "candidate"
ORDER_TAG = "champion"
"""On a version that is or was champion: the place of its coronation, counted from 1.

The tags are the truth, and the alias follows them: MLflow can't compare and set, but two writers
never write the same version's tag, so no coronation is lost. Of two with one place the better one
came second. Whoever writes looks again until the alias is the tags' last, so whoever writes last
leaves it right, and a kill in between leaves what the next promotion or rollback completes.
"""

AT_ONCE_SECONDS = 600.0
"""Versions that were registered so little before another one may still be moving an alias."""
_BATCH = 100
"""Images at a time: no number depends on it, as noise goes by position and sums are float64."""


@dataclass(frozen=True)
class Standing:
    """What a version is judged by: its held-out ELBO (nats per image), and of what it is one."""

    model: RegisteredModel
    elbo: float | None
    terms: dict[str, str | None]
    run: str | None


def promote(
    uri: str,
    data: str | None = None,
    *,
    allow_custom: Collection[str] = (),
    shards_below: Sequence[str] = (),
) -> RegisteredModel:
    """Makes a version the champion if its held-out ELBO is above the present champion's.

    The ELBOs are those of the registry, or, with `data`, measured now on that dataset. Raises
    `ModelError` if it is not better (also than one that was promoted meanwhile), or if the two
    numbers are not of the same thing.
    """
    model = resolve(uri, flag="--promote")
    past = champions(model.name)
    if past and past[-1] == model.version:
        logger.info("%s is the champion already", model.uri)
        _settle(model.name)
        return model
    rival = resolve(f"models:/{model.name}/{past[-1]}") if past else None
    if data is not None:
        dataset = Dataset.open(data, None, shards_below)
        for each in filter(None, (model, rival)):
            _measure(each, dataset, allow_custom)
    mine = _standing(model)
    if mine.elbo is None:
        raise ModelError(
            f"{model.uri}: the registry has no held-out ELBO of it. Give `--data HOLDOUT` to "
            "measure it."
        )
    if rival is not None:
        _refuse_unless_better(mine, _standing(rival))
    _tag(model, _place_of(rival) + 1)
    now = _settle(model.name)
    if now != model.version:
        raise ModelError(
            f"{model.uri}: was promoted while version {now} was, which is better on equal "
            "terms and is the champion."
        )
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
    before = _alias(model.name, CANDIDATE)
    if before is not None and before != model.version:
        present = resolve(f"models:/{model.name}/{before}")
        why = _why_not_above(_standing(model), _standing(present))
        if why is not None:
            logger.warning(
                "%s stays version %d: of version %d %s. To move it anyhow, train or register with "
                "`--tracking.model %s@%s`.",
                f"models:/{model.name}@{CANDIDATE}",
                present.version,
                model.version,
                why,
                model.name,
                CANDIDATE,
            )
            return None
    _point(model, CANDIDATE)
    while _alias(model.name, CANDIDATE) != (best := _best_since(model, before or 0)).version:
        _point(best, CANDIDATE)
    return CANDIDATE if best.version == model.version else None


def _best_since(model: RegisteredModel, before: int) -> RegisteredModel:
    """The candidate among this new version, the one `before` it and those registered meanwhile.

    Of two runs that end at once both may have seen the same candidate, and MLflow can't compare and
    set: each looks again at what both have registered before they moved the alias.
    """
    where = tracking_uri()
    with tracking_errors(where):
        found = mlflow_client(where).search_model_versions(name_is(model.name))
    made = {int(each.version): each for each in found}
    since = made[model.version].creation_timestamp - AT_ONCE_SECONDS * 1000
    best: Standing | None = None
    for number, each in sorted(made.items()):
        mine = _standing_by(RegisteredModel(model.name, number, each.source), each.tags)
        if number != before and (number < before or each.creation_timestamp < since):
            continue
        if best is None or _why_not_above(mine, best) is None:
            best = mine
    assert best is not None, "the version itself is among them"
    return best.model


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
    """Makes the champion before the present one the champion again.

    The present one is the one that the alias means: a promotion that was killed before it moved
    that never took place.
    """
    past, present = champions(name), _alias(name, CHAMPION)
    ended = past[past.index(present) :] if present in past else past[-1:]
    left = past[: len(past) - len(ended)]
    if not left:
        raise ModelError(
            f"model {name!r}: there is no champion before {past or 'any'}. Choose one: "
            f"`python -m jobs.models --promote {shell_word(f'models:/{name}/{_newest(name)}')}`."
        )
    for version in reversed(ended):
        _tag(resolve(f"models:/{name}/{version}"), None)
    # Not by `_settle`: to it an alias on a version without a place was moved by hand.
    champion = resolve(f"models:/{name}/{left[-1]}")
    _point(champion, CHAMPION)
    return champion


def _refuse_unless_better(mine: Standing, other: Standing) -> None:
    what = f"{mine.model.uri} and the champion, version {other.model.version},"
    for name, value in mine.terms.items():
        if value != other.terms[name]:
            advice = (
                "Give `--data HOLDOUT` to measure both on one."
                if name == "holdout_digest"
                else "Such numbers are not of the same thing: train under another "
                "`--tracking.model NAME`."
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
    return _standing_by(model, version_tags(model))


def _standing_by(model: RegisteredModel, tags: Mapping[str, str]) -> Standing:
    terms = {name: tags.get(name) for name in ("holdout_digest", "preprocess", "measure")}
    return Standing(model, elbo_of(tags), terms, tags.get("run"))


def _measure(model: RegisteredModel, dataset: Dataset, allow_custom: Collection[str]) -> None:
    """Measures the exact ELBO on a dataset and writes it to the version's tags."""
    vae = load_model(model.uri, allow_custom)
    with closing(in_order(dataset, vae.preprocess, _BATCH)) as loader:
        means = evaluate_elbo(vae, loader, 0, _BATCH).means()
    found = {"holdout_digest": dataset.digest, "holdout_elbo": repr(means["elbo"])}
    where = tracking_uri()
    client = mlflow_client(where)
    with tracking_errors(where):
        for name, value in {**model_tags(vae), **found}.items():
            client.set_model_version_tag(model.name, str(model.version), name, value)


def champions(name: str) -> list[int]:
    """The versions that are or were champion, in order; the last is the present one."""
    where = tracking_uri()
    with tracking_errors(where):
        found = mlflow_client(where).search_model_versions(name_is(name))
    placed = []
    for version in found:
        place = version.tags.get(ORDER_TAG, "")
        if place.isdecimal() and len(place) < _DIGITS:
            elbo = elbo_of(version.tags)
            placed.append((int(place), -math.inf if elbo is None else elbo, int(version.version)))
    past = [version for _, _, version in sorted(placed)]
    present = _alias(name, CHAMPION)
    known = {int(version.version) for version in found}
    if present in known and present not in past:
        past.append(present)  # Somebody moved the alias by hand.
    return past


_DIGITS = 10
"""More coronations than a place of so many digits counts there never were."""


def elbo_of(tags: Mapping[str, str]) -> float | None:
    """A version's held-out ELBO as its tags tell it; None where they tell no number."""
    try:
        elbo = float(tags.get("holdout_elbo") or "nan")
    except ValueError:
        return None
    return elbo if math.isfinite(elbo) else None


def _newest(name: str) -> int:
    where = tracking_uri()
    with tracking_errors(where):
        found = mlflow_client(where).search_model_versions(name_is(name))
    return max(int(version.version) for version in found)


def _alias(name: str, alias: str) -> int | None:
    where = tracking_uri()
    with tracking_errors(where):
        present = mlflow_client(where).get_registered_model(name).aliases.get(alias)
    return int(present) if present is not None else None


def _place_of(rival: RegisteredModel | None) -> int:
    """The place of a champion; one that was made by hand gets its tag now."""
    if rival is None:
        return 0
    place = version_tags(rival).get(ORDER_TAG, "")
    if place.isdecimal() and len(place) < _DIGITS:
        return int(place)
    past = champions(rival.name)
    before = [v for v in past if v != rival.version]
    last = _place_of(resolve(f"models:/{rival.name}/{before[-1]}")) if before else 0
    _tag(rival, last + 1)
    return last + 1


def _tag(model: RegisteredModel, place: int | None) -> None:
    where = tracking_uri()
    client = mlflow_client(where)
    with tracking_errors(where):
        if place is None:
            client.set_model_version_tag(model.name, str(model.version), ORDER_TAG, "")
        else:
            client.set_model_version_tag(model.name, str(model.version), ORDER_TAG, str(place))


def _settle(name: str) -> int:
    """Lets the alias mean the last champion of the tags, and looks again; that version."""
    where = tracking_uri()
    while True:
        last = champions(name)[-1]
        if _alias(name, CHAMPION) == last:
            return last
        with tracking_errors(where):
            mlflow_client(where).set_registered_model_alias(name, CHAMPION, str(last))
