"""Failures of flags and their values, as README and docs tempt people to make them."""

import shlex
from pathlib import Path

from tests.failures.mending import Failure
from tests.failures.world import TRAIN, write_yaml

NEW = f"vae train {shlex.join(TRAIN)} --run new"
PARSED = ("--print-config",)


def _yaml_typo(home: Path) -> None:
    write_yaml(home / "mine.yaml", steps=2, optimizer={"learning_rat": 0.001})


def _yaml_tab(home: Path) -> None:
    (home / "mine.yaml").write_text("steps: 2\noptimizer:\n\tlearning_rate: 0.001\n")


def _yaml(home: Path) -> None:
    write_yaml(home / "mine.yaml", steps=2)


def _key_mended(home: Path) -> None:
    path = home / "mine.yaml"
    path.write_text(path.read_text().replace('learning_rat"', 'learning_rate"'))


def _tab_mended(home: Path) -> None:
    path = home / "mine.yaml"
    path.write_text(path.read_text().replace("\t", "  "))


def parsed(name: str, command: str, **knows: str) -> Failure:
    """A command line that is refused before anything is read."""
    told = {f"--{flag.replace('__', '.').replace('_', '-')}": v for flag, v in knows.items()}
    return Failure(name, command, knows=told, checked_by=PARSED)


FAILURES = (
    Failure("job typo", NEW.replace("vae train", "vae trian"), checked_by=PARSED),
    parsed("flag typo", f"{NEW} --step 3"),
    parsed("lr", f"{NEW} --lr 0.001"),
    parsed("batch size", f"{NEW} --batch-size 8"),
    parsed("sorce", "vae pack --sorce photos --output runs/new"),
    parsed("beta", f"{NEW} --beta 0.5"),
    parsed("epochs", f"{NEW} --epochs 3", steps="60"),
    parsed("no source", "vae pack --output runs/new", source="photos"),
    parsed("no data", "vae train --run new", data="runs/photos/train"),
    parsed("no run", "vae train --data runs/photos/train", run="new"),
    parsed("nothing to verify", "vae verify", store="runs/latents"),
    parsed("negative rate", f"{NEW} --optimizer.learning-rate -0.001",
           optimizer__learning_rate="0.001"),
    parsed("steps in words", f"{NEW} --steps many", steps="3"),
    parsed("no steps", f"{NEW} --steps 0", steps="3"),
    parsed("hold-out in percent", "vae pack --source photos --output runs/new --holdout 5",
           holdout="0.05"),
    parsed("decay of 2", f"{NEW} --optimizer.ema-decay 2", optimizer__ema_decay="0.99"),
    parsed("unknown kind", f"{NEW} --model.kind vqvae", model__kind="conv"),
    parsed("mse", f"{NEW} --model.likelihood mse", model__likelihood="gaussian"),
    parsed("objective elbo", f"{NEW} --objective.kind elbo", objective__kind="beta"),
    parsed("centre", f"{NEW} --crop centre"),
    parsed("fp8", f"{NEW} --precision fp8", precision="bf16"),
    parsed("freeze head", f"{NEW} --freeze head", freeze="decoder"),
    parsed("npz", "vae export --store runs/latents --output runs/tars --format npz", format="npy"),
    parsed("sigma of bernoulli", f"{NEW} --model.likelihood bernoulli --model.sigma 0.1"),
    parsed("full conv", f"{NEW} --model.kind conv --model.posterior full"),
    parsed("grid of mlp", f"{NEW} --model.latent-size 4"),
    parsed("custom without kind", f"{NEW} --model.custom mynet:Mine"),
    parsed("kind without custom", f"{NEW} --model.kind custom", model__custom="mynet:Mine"),
    parsed("warm-up of no length", f"{NEW} --objective.warmup linear",
           objective__warmup="linear:5"),
    parsed("iwae of one", f"{NEW} --objective.kind iwae", objective__samples="3"),
    parsed("free bits of none", f"{NEW} --objective.kind free_bits", objective__free_nats="0.5"),
    parsed("exact without micro", f"{NEW} --exact", micro_batch_size="4"),
    parsed("workers 8..2", f"{NEW} --workers 8..2"),
    parsed("workers two", f"{NEW} --workers two", workers="2"),
    parsed("more workers than images", f"{NEW} --workers 64", workers="2"),
    parsed("metrics without host", f"{NEW} --tracking.metrics 9090"),
    parsed("model name with a blank", f"{NEW} --tracking.model 'my model'",
           tracking__model="my-model"),
    parsed("alias latest", f"{NEW} --tracking.model first@latest", tracking__model="first@newest"),
    parsed("run like a path", f"{NEW} --run 'my run/1'", run="my-run-1"),
    parsed("password in a URL", f"{NEW} --storage s3://key:secret@bucket/runs",
           storage="s3://bucket/runs"),
    parsed("recipe typo", "vae train --recipe photos --data runs/photos/train --run new"),
    Failure("config typo", f"{NEW} --config mine.yml", _yaml, checked_by=PARSED),
    Failure("key typo", f"{NEW} --config mine.yaml", _yaml_typo, {"learning_rate": _key_mended},
            checked_by=PARSED),
    Failure("tab", f"{NEW} --config mine.yaml", _yaml_tab, {"\\t": _tab_mended},
            checked_by=PARSED),
    Failure("sweep of beta", f"{NEW} --sweep beta=0.5,1"),
    Failure("sweep of nothing", f"{NEW} --sweep objective.beta",
            knows={"--sweep": "objective.beta=0.5,1"}),
    Failure("sweep of words", f"{NEW} --sweep objective.beta=low,high",
            knows={"--sweep": "objective.beta=0.5,1"}),
)  # fmt: skip
