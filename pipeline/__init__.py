"""From image archives to registered VAEs and verified latent stores, exact at every step.

A place is a path or a URL, or what is open or was made there: `train` takes a `Dataset` or what
`pack` gave, `evaluate` and `load_model` what `train` gave.
"""

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection

    from pydantic_core import ErrorDetails

    from pipeline.commands.encode import Encoded
    from pipeline.commands.evaluate import Evaluation
    from pipeline.config import Section
    from pipeline.json_value import Json
    from pipeline.packing.commit import PackResult
    from pipeline.runs.result import TrainingResult
    from pipeline.storage import Place
    from pipeline.vae import VAE

Asked = TypeVar("Asked", bound="Section")
_OF_COMMANDS = {
    "dry_run": "from Python nothing is tried out; `vae COMMAND --dry-run` says what it would do",
    "sweep": "that is several runs; call `train` for each value, or `vae train --sweep`",
}
"""Keys that are of the commands alone, and what to do instead."""


def load_model(uri: "Place", allow_custom: "Collection[str]" = ()) -> "VAE":
    """The VAE behind `models:/NAME@ALIAS`, `models:/NAME/VERSION`, a bundle's path, or a finished
    run: its name below `runs`, or what `train` gave. On the CPU; `.to("cuda")` moves it.

    Its checksums are verified. A network of somebody's own is built only if `allow_custom` names
    its class, as package.module:Class. Needs `vae-pipeline[pull]`, not Ray. Raises `ModelError`
    saying which names, aliases or versions there are.
    """
    from pipeline.registry.named_models import DEFAULT_RUNS, load_named
    from pipeline.storage import named

    name = named(uri, "load_model")
    return load_named(name, DEFAULT_RUNS, allow_custom, flag="load_model")[0]


def recipes() -> "dict[str, Json]":
    """What each recipe sets, by its name: `train(data, run="a", recipe="photos-64")` begins so."""
    from pipeline import recipe

    return {name: recipe.read_recipe(name) for name in recipe.recipes()}


def pack(*source: "Place | Collection[Place]", output: "Place", **settings: Any) -> "PackResult":
    """What `jobs.pack` does, from Python: images of these places become the dataset `output`.

    A place is a path, a URL, or a list of them. `settings` are the keys of
    `pipeline.config.PackConfig`, as `holdout=0.05`, or `below=["/photos"]` for a table whose rows
    name images elsewhere; `help(pipeline.config.PackConfig)` tells each. Raises `ConfigError` for a
    wrong key.
    """
    from pipeline.config import PackConfig
    from pipeline.packing.pack import pack as run

    places = [
        place for each in source for place in (each if isinstance(each, list | tuple) else [each])
    ]
    return run(_asked("pack", PackConfig, source=places, output=output, **settings))


def train(data: "Place", *, run: str, **settings: Any) -> "TrainingResult":
    """What `jobs.train` does, from Python: the same run, folder, model and numbers.

    `settings` are the keys of `pipeline.config.TrainConfig`, sections as dictionaries:
    `train("runs/data/train", run="first", steps=400, workers=0, model={"kind": "conv"})`. They are
    laid upon a YAML file of the same keys where one is given (`config="my.yaml"`, as in each call
    here), and that upon a recipe (`recipe="photos-64"`, see `recipes`).
    `help(pipeline.config.TrainConfig)` tells each key. Called again, it goes on or says that the
    run is finished. Raises `ConfigError` for a wrong key, and `DatasetError` for a `Dataset` that
    is no more what is current at its place.
    """
    from pipeline.commands.train import run_training
    from pipeline.config import TrainConfig

    return run_training(_asked("train", TrainConfig, data=data, run=run, **settings))


def evaluate(model: "Place", data: "Place", **settings: Any) -> "Evaluation":
    """What `jobs.evaluate` does, from Python: exact numbers of a model, or of a finished run.

    `settings` are the keys of `pipeline.config.EvaluateConfig`: `compare=("second",)` sets another
    one beside it, image by image; `bound_images=0` leaves out the better bounds on log p(x), which
    take minutes where all else takes seconds. `help(pipeline.config.EvaluateConfig)` tells each.
    Raises as `train` does.
    """
    from pipeline.commands.evaluate import run_evaluation
    from pipeline.config import EvaluateConfig

    return run_evaluation(_asked("evaluate", EvaluateConfig, model=model, data=data, **settings))


def encode(model: "Place", data: "Place", *, output: "Place", **settings: Any) -> "Encoded":
    """What `jobs.encode` does, from Python: the images that have no latents yet get them.

    `settings` are the keys of `pipeline.config.EncodeConfig`: `columns=("label",)` copies labels,
    `actors=0` encodes in this process. `help(pipeline.config.EncodeConfig)` tells each. Raises as
    `train` does.
    """
    from pipeline.commands.encode import run_encoding
    from pipeline.config import EncodeConfig

    asked = _asked("encode", EncodeConfig, model=model, data=data, output=output, **settings)
    return run_encoding(asked)


def _plain(given: Any) -> Any:
    """Values of keys as commands have them: a path, a dataset, a run or a store is its place."""
    from pipeline.storage import plain

    if isinstance(given, list | tuple):
        return [_plain(each) for each in given]
    if isinstance(given, dict):
        return {key: _plain(value) for key, value in given.items()}
    return plain(given)


def _hear_warnings() -> None:
    """Of ours: other libraries raise the level of all (`import mlflow.pytorch` does)."""
    import logging

    ours = logging.getLogger(__name__)
    if ours.level == logging.NOTSET and not ours.isEnabledFor(logging.WARNING):
        ours.setLevel(logging.WARNING)


def _asked(name: str, kind: "type[Asked]", /, **asked: Any) -> "Asked":
    """The config of these values, whose errors name the keys as Python has them."""
    from pathlib import Path

    from pydantic import ValidationError

    from pipeline.errors import ConfigError
    from pipeline.recipe import merge, read_recipe, read_yaml

    _hear_warnings()
    given, base = {key: _plain(value) for key, value in asked.items()}, {}
    if name == "train" and (recipe := given.pop("recipe", None)) is not None:
        base = read_recipe(str(recipe), "recipe")
    if (path := given.pop("config", None)) is not None:
        base = merge(base, read_yaml(Path(str(path)), "config"))
    values = merge(base, given)
    for key, why in _OF_COMMANDS.items():
        if key in kind.model_fields and values.get(key):
            raise ConfigError(f"{name}: {key}: {why}.")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        wrong = [_wrong(kind, each["loc"], _said(each)) for each in error.errors()]
        raise ConfigError(f"{name}: {'; '.join(wrong)}.") from None


def _said(error: "ErrorDetails") -> str:
    """What is wrong with a value, in words of Python."""
    found = error["input"]
    if error["type"] == "tuple_type" and isinstance(found, str | int | float):
        return f"give a list: [{found!r}]"
    if error["type"] == "string_type":
        is_plain = found is None or isinstance(found, bool | int | float | bytes | list | dict)
        hint = "" if is_plain else ". What is in memory has to be saved first; give that file"
        return f"takes a text or a path, found {found if is_plain else type(found).__name__}{hint}"
    return error["msg"]


def _wrong(kind: "type[Asked]", loc: tuple[int | str, ...], said: str) -> str:
    """What is wrong with a key, and which ones there are like one that is none."""
    from pydantic import BaseModel

    from pipeline.config.command_line import keys_of, near_names

    at: Any = kind
    for name in loc[:-1]:
        is_section = isinstance(at, type) and issubclass(at, BaseModel) and name in at.model_fields
        at = at.model_fields[name].annotation if is_section else None
    if isinstance(at, type) and issubclass(at, BaseModel) and loc[-1] not in at.model_fields:
        keys = [*at.model_fields, *(".".join(path) for path, _ in keys_of(at))]
        names = [each.replace("_", "-") for each in dict.fromkeys(keys)]
        near = [
            each.replace("-", "_") for each in near_names(str(loc[-1]).replace("_", "-"), names)
        ]
        meant = f"; did you mean {' or '.join(near)}" if near else ""
        said = f"`pipeline.config.{at.__name__}` has no such key{meant}"
    return f"{'.'.join(map(str, loc))}: {said}"
