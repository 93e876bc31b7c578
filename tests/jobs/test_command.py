import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.command import parse_flags, validate
from pipeline.config import EvaluateConfig, ExplainConfig, PackConfig, Section, TrainConfig
from pipeline.config.command_line import training_command
from pipeline.errors import ConfigError
from pipeline.recipe import merge
from tests.support import warm

ROOT = Path(__file__).parent.parent.parent
JOBS = sorted(
    path.stem
    for path in (ROOT / "jobs").glob("[!_]*.py")
    if path.stem not in ("command", "completion", "flags", "help", "interrupts", "refusals")
)


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd or ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )


def test_a_job_that_a_notebook_starts_draws_without_the_notebooks_backend() -> None:
    begin = (
        "from jobs.command import Outcome, run_job; from pipeline.config import StoresConfig\n"
        "def main(config):\n"
        "    import matplotlib\n"
        "    return Outcome({'version': matplotlib.__version__})\n"
        "run_job(StoresConfig, main, ['--store', 's'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", begin],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT), "MPLBACKEND": "module://of_another_environment"},
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "version" in ended.stdout


def config_of(*arguments: str) -> TrainConfig:
    values, _ = parse_flags(TrainConfig, ["--data", "d", "--run", "r", *arguments], "p")
    return validate(TrainConfig, values)


def test_flags_of_sections_do_not_touch_their_siblings() -> None:
    config = config_of("--optimizer.learning-rate", "3e-4", "--model.kind", "mlp")
    assert config.optimizer.learning_rate == 3e-4
    assert config.optimizer.clip_norm == TrainConfig(data="d", run="r").optimizer.clip_norm
    assert config.model.kind == "mlp"


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("steps: 7\nseed: 5\noptimizer: {learning_rate: 0.5, clip_norm: 3}\n")
    config = config_of("--config", str(file), "--steps", "9", "--optimizer.clip-norm", "4")
    assert (config.steps, config.seed) == (9, 5)
    assert (config.optimizer.learning_rate, config.optimizer.clip_norm) == (0.5, 4.0)
    assert config.global_batch_size == 256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimiser: {learning_rate: 1}", "optimiser: unknown key. Did you mean `optimizer`"),
        ("optimizer: {learning_rat: 1}", "learning_rat: unknown key. Did you mean `learning_rate`"),
        ("steps: many", "steps: .*Found: 'many'"),
        ("[1, 2]", "holds no mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        config_of("--config", str(file))


def test_a_runs_own_command_line_asks_for_the_same_configuration() -> None:
    config = config_of(
        "--model.kind", "mlp", "--flip", "--shards-below", "s3://a b", "s3://c", "--steps", "7",
        "--workers", "2..4", "--objective.kind", "iwae", "--objective.samples", "3",
    )  # fmt: skip
    words = shlex.split(training_command(config))
    assert words[:3] == ["python", "-m", "jobs.train"]
    values, _ = parse_flags(TrainConfig, words[3:], "p")
    assert validate(TrainConfig, values) == config


def test_values_are_what_their_keys_say() -> None:
    config = config_of(
        "--workers=2", "--no-flip", "--model.factor", "8", "--model.kind", "autoencoder_kl",
        "--shards_below", "s3://a", "s3://b", "--holdout", "None", "--optimizer.clip-norm", "1e3",
    )  # fmt: skip
    assert (config.workers, config.flip, config.model.factor) == (2, False, 8)
    assert config.shards_below == ("s3://a", "s3://b")
    assert (config.holdout, config.optimizer.clip_norm) == (None, 1000.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "1"], "`--optimizer.learning-rate`"),
        (["--step", "3"], "`--steps`"),
        (["--batch-size", "3"], "`--global-batch-size`"),
        (["--beta", "1"], "`--objective.beta`"),
        (["--epochs", "1"], "`--steps`"),
        (["--steps"], "`--steps INT`"),
        (["photos"], "'photos': stands behind no flag. `p --help`"),
        (["--model.kind", "con"], "`--model.kind conv`"),
        (["--recipe", "photos"], "`--recipe photos-64`"),
        (["--run", "my run"], "`--run my-run`"),
    ],
)
def test_a_wrong_flag_is_answered_with_the_one_that_was_meant(
    arguments: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        config_of(*arguments)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("config_type", "arguments", "meant"),
    [
        (PackConfig, ["photos", "runs/photos"], "--source photos"),
        (PackConfig, ["--source", "photos", "--append", "out"], "--output out"),
        (TrainConfig, ["--data", "d", "my run"], "--run 'my run'"),
        (ExplainConfig, ["first"], "--run first"),
        (EvaluateConfig, ["first"], "--model first"),
    ],
)
def test_a_word_without_a_flag_is_told_the_first_that_is_missing(
    config_type: type[Section], arguments: list[str], meant: str
) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean `{meant}`"):
        parse_flags(config_type, arguments, "p")


def test_merging_keeps_what_the_upper_does_not_name() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}}) == {
        "a": {"b": 1, "c": 4},
        "d": 3,
    }


@pytest.mark.parametrize("job", JOBS)
def test_help_of_each_job_imports_nothing_heavy(job: str) -> None:
    # What costs seconds is torch, ray and mlflow; the parser costs a third of one.
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['x', '--help']\n"
        "try:\n"
        f"    runpy.run_module('jobs.{job}', run_name='__main__')\n"
        "except SystemExit as error:\n"
        "    assert not error.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'pyarrow', 'matplotlib', 'fsspec'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "--config" in found.stdout


def test_who_calls_vae_is_answered_with_vae() -> None:
    called = (
        "import sys; from jobs.__main__ import main; sys.argv[:] = ['vae', 'pack', 'x']; main()"
    )
    done = subprocess.run([sys.executable, "-c", called], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "`vae pack --help`" in done.stderr) == (2, True)


def test_advice_comes_in_the_form_that_was_typed() -> None:
    called = (
        "import sys; from jobs.__main__ import main; sys.argv[:] = ['vae', 'verify', '--store', "
        "'nowhere']; main()"
    )
    done = subprocess.run([sys.executable, "-c", called], cwd=ROOT, capture_output=True, text=True)
    assert "make one with `vae encode --model URI" in done.stderr
    assert "python -m" not in done.stderr
    typed = run("jobs.verify", "--store", "nowhere").stderr
    assert "make one with `python -m jobs.encode --model URI" in typed
    code = (
        "import sys, types; m = sys.modules['__main__']; m.__spec__ = types.SimpleNamespace("
        "name='jobs.train'); from pipeline.own_name import as_typed; "
        "print(as_typed('do `vae encode --x`, `vae`, or `python -m jobs.pack`'))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert said.stdout == "do `python -m jobs.encode --x`, `vae`, or `python -m jobs.pack`\n"


def test_the_list_of_jobs_names_each_job() -> None:
    found = run("jobs").stdout
    assert all(f"\n  {job} " in found for job in JOBS)


def test_print_config_writes_yaml_that_gives_the_same_config(tmp_path: Path) -> None:
    first = run("jobs.train", "--data", "d", "--run", "r", "--steps", "3", "--print-config")
    file = tmp_path / "c.yaml"
    file.write_text(first.stdout)
    again = run("jobs.train", "--config", str(file), "--print-config")
    assert again.stdout == first.stdout
    assert "steps: 3" in first.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["jobs.train", "--bogus"], 2, "--bogus"),
        (["jobs.train", "--dta", "d", "--run", "r"], 2, "--data"),
        (["jobs.train", "--data", "d"], 2, "run: is required; give `--run TEXT`."),
        (["jobs.train", "--data", "d", "--run", "a/b"], 2, "run: "),
        (["jobs.train", "--data", "nowhere", "--run", "r"], 1, "nowhere: there is no dataset here"),
        (["jobs.pack", "--source", "nowhere", "--output", "o"], 1, "nowhere"),
        (["jobs.pull", "--model", "models:/no@such", "--output", "o"], 1, "has no model 'no'"),
        (["jobs.pull", "--model", "no", "--output", "o"], 1, "is neither models:/NAME@ALIAS"),
        (["jobs.verify"], 2, "give `--dataset URL` or `--store URL`"),
    ],
)
def test_bad_input_gets_one_message_and_its_exit_code_and_no_traceback(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    found = warm.run(tmp_path, *arguments)
    assert found.returncode == code, found.stderr
    assert message in found.stderr
    assert "Traceback" not in found.stderr
    assert found.stdout == ""
