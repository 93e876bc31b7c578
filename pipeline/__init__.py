"""From image archives to registered VAEs and verified latent stores, exact at every step."""

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from pipeline.commands.encode import Encoded
    from pipeline.commands.evaluate import Evaluation
    from pipeline.config import Section
    from pipeline.json_value import Json
    from pipeline.packing.commit import PackResult
    from pipeline.runs.result import TrainingResult
    from pipeline.vae import VAE

    Place = str | Path
    """A folder's path or a URL."""

Asked = TypeVar("Asked", bound="Section")
_OF_COMMANDS = {
    "dry_run": "from Python nothing is tried out; `vae COMMAND --dry-run` says what it would do",
    "sweep": "that is several runs; call `train` for each value, or `vae train --sweep`",
}
"""Keys that are of the commands alone, and what to do instead."""


def load_model(uri: "Place", allow_custom: "Collection[str]" = ()) -> "VAE":
    """The VAE behind `models:/NAME@ALIAS`, `models:/NAME/VERSION`, a bundle's path, or the name of
    a finished run below `runs`.

    Its checksums are verified. A network of somebody's own is built only if `allow_custom` names
    its class, as package.module:Class. Needs `vae-pipeline[pull]`, not Ray. Raises `ModelError`
    saying which names, aliases or versions there are.
    """
    from pipeline.registry.named_models import DEFAULT_RUNS, load_named

    return load_named(str(uri), DEFAULT_RUNS, allow_custom, flag="load_model")[0]


def recipes() -> "dict[str, Json]":
    """What each recipe sets, by its name: `train(data, run="a", recipe="photos-64")` begins so."""
    from pipeline import recipe

    return {name: recipe.read_recipe(name) for name in recipe.recipes()}


def pack(*source: "Place", output: "Place", **settings: Any) -> "PackResult":
    """What `jobs.pack` does, from Python: images of these places become the dataset `output`.

    `settings` are the keys of `pipeline.config.PackConfig`, as `holdout=0.05`. Raises `ConfigError`
    for a wrong key.
    """
    from pipeline.config import PackConfig
    from pipeline.packing.pack import pack as run

    return run(
        _asked(
            "pack", PackConfig, {"source": [*map(str, source)], "output": str(output), **settings}
        )
    )


def train(data: "Place", *, run: str, **settings: Any) -> "TrainingResult":
    """What `jobs.train` does, from Python: the same run, folder, model and numbers.

    `settings` are the keys of `pipeline.config.TrainConfig`, sections as dictionaries:
    `train("runs/data/train", run="first", steps=400, workers=0, model={"kind": "conv"})`. They are
    laid upon a YAML file of the same keys where one is given (`config="my.yaml"`, as in each call
    here), and that upon a recipe (`recipe="photos-64"`, see `recipes`). Called again, it goes on or
    says that the run is finished. Raises `ConfigError` for a wrong key.
    """
    from pipeline.commands.train import run_training
    from pipeline.config import TrainConfig

    return run_training(_asked("train", TrainConfig, {"data": str(data), "run": run, **settings}))


def evaluate(model: "Place", data: "Place", **settings: Any) -> "Evaluation":
    """What `jobs.evaluate` does, from Python: exact numbers of a model, or of a finished run.

    `settings` are the keys of `pipeline.config.EvaluateConfig`: `compare=("second",)` sets another
    one beside it, image by image. Raises `ConfigError` for a wrong key.
    """
    from pipeline.commands.evaluate import run_evaluation
    from pipeline.config import EvaluateConfig

    return run_evaluation(
        _asked("evaluate", EvaluateConfig, {"model": str(model), "data": str(data), **settings})
    )


def encode(model: "Place", data: "Place", *, output: "Place", **settings: Any) -> "Encoded":
    """What `jobs.encode` does, from Python: the images that have no latents yet get them.

    `settings` are the keys of `pipeline.config.EncodeConfig`: `columns=("label",)` copies labels,
    `actors=0` encodes in this process. Raises `ConfigError` for a wrong key.
    """
    from pipeline.commands.encode import run_encoding
    from pipeline.config import EncodeConfig

    asked = {"model": str(model), "data": str(data), "output": str(output), **settings}
    return run_encoding(_asked("encode", EncodeConfig, asked))


def _asked(name: str, kind: "type[Asked]", values: "Json") -> "Asked":
    """The config of these values, whose errors name the keys as Python has them."""
    from pathlib import Path

    from pydantic import ValidationError

    from pipeline.errors import ConfigError
    from pipeline.recipe import merge, read_recipe, read_yaml

    given, base = dict(values), {}
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
        wrong = [
            _wrong(kind, each["loc"], f"give a list: [{each['input']!r}]")
            if each["type"] == "tuple_type" and isinstance(each["input"], str)
            else _wrong(kind, each["loc"], each["msg"])
            for each in error.errors()
        ]
        raise ConfigError(f"{name}: {'; '.join(wrong)}.") from None


def _wrong(kind: "type[Asked]", loc: tuple[int | str, ...], said: str) -> str:
    """What is wrong with a key, and which ones there are like one that is none."""
    from pipeline.config.command_line import keys_of, near_names

    if len(loc) == 1 and loc[0] not in kind.model_fields:
        keys = [*kind.model_fields, *(".".join(path) for path, _ in keys_of(kind))]
        names = [each.replace("_", "-") for each in dict.fromkeys(keys)]
        near = [each.replace("-", "_") for each in near_names(str(loc[0]).replace("_", "-"), names)]
        meant = f"; did you mean {' or '.join(near)}" if near else ""
        said = f"`pipeline.config.{kind.__name__}` has no such key{meant}"
    return f"{'.'.join(map(str, loc))}: {said}"
