"""From image archives to registered VAEs and verified latent stores, exact at every step."""

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection

    from pipeline.commands.encode import Encoded
    from pipeline.commands.evaluate import Evaluation
    from pipeline.config import Section
    from pipeline.json_value import Json
    from pipeline.packing.commit import PackResult
    from pipeline.runs.result import TrainingResult
    from pipeline.vae import VAE

Asked = TypeVar("Asked", bound="Section")


def load_model(uri: str, allow_custom: "Collection[str]" = ()) -> "VAE":
    """The VAE behind `models:/NAME@ALIAS`, `models:/NAME/VERSION` or a bundle's path.

    Its checksums are verified. A network of somebody's own is built only if `allow_custom` names
    its class, as package.module:Class. Needs `vae-pipeline[pull]`, not Ray. Raises `ModelError`
    saying which names, aliases or versions there are.
    """
    from pipeline.registry.models import load_model as load

    return load(uri, allow_custom=allow_custom)


def pack(*source: str, output: str, **settings: Any) -> "PackResult":
    """What `jobs.pack` does, from Python: images of these places become the dataset `output`.

    `settings` are the keys of `pipeline.config.PackConfig`, as `holdout=0.05`. Raises `ConfigError`
    for a wrong key.
    """
    from pipeline.config import PackConfig
    from pipeline.packing.pack import pack as run

    return run(_asked("pack", PackConfig, {"source": list(source), "output": output, **settings}))


def train(data: str, *, run: str, **settings: Any) -> "TrainingResult":
    """What `jobs.train` does, from Python: the same run, folder, model and numbers.

    `settings` are the keys of `pipeline.config.TrainConfig`, sections as dictionaries:
    `train("runs/data/train", run="first", steps=400, workers=0, model={"kind": "conv"})`. Called
    again, it goes on or says that the run is finished. Raises `ConfigError` for a wrong key.
    """
    from pipeline.commands.train import run_training
    from pipeline.config import TrainConfig

    return run_training(_asked("train", TrainConfig, {"data": data, "run": run, **settings}))


def evaluate(model: str, data: str, **settings: Any) -> "Evaluation":
    """What `jobs.evaluate` does, from Python: exact numbers of a model, or of a finished run.

    `settings` are the keys of `pipeline.config.EvaluateConfig`: `compare=("second",)` sets another
    one beside it, image by image. Raises `ConfigError` for a wrong key.
    """
    from pipeline.commands.evaluate import run_evaluation
    from pipeline.config import EvaluateConfig

    return run_evaluation(
        _asked("evaluate", EvaluateConfig, {"model": model, "data": data, **settings})
    )


def encode(model: str, data: str, *, output: str, **settings: Any) -> "Encoded":
    """What `jobs.encode` does, from Python: the images that have no latents yet get them.

    `settings` are the keys of `pipeline.config.EncodeConfig`: `columns=("label",)` copies labels,
    `actors=0` encodes in this process. Raises `ConfigError` for a wrong key.
    """
    from pipeline.commands.encode import run_encoding
    from pipeline.config import EncodeConfig

    asked = {"model": model, "data": data, "output": output, **settings}
    return run_encoding(_asked("encode", EncodeConfig, asked))


def _asked(name: str, kind: "type[Asked]", values: "Json") -> "Asked":
    """The config of these values, whose errors name the keys as Python has them."""
    from pydantic import ValidationError

    from pipeline.errors import ConfigError

    try:
        return kind.model_validate(values)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise ConfigError(f"{name}: {'; '.join(wrong)}.") from None
