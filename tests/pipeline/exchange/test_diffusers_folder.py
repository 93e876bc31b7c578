import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.errors import ModelError, PipelineError
from pipeline.exchange.diffusers_folder import find_diffusers, read_diffusers, write_diffusers
from pipeline.exchange.model_folder import load_folder
from pipeline.exchange.weight_files import WEIGHTS
from pipeline.latent_scale import LatentScale
from pipeline.vae import VAE, build_vae, load_bundle, save_bundle


def small(factor: int = 4, likelihood: str = "gaussian") -> VAE:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(
        {"kind": "autoencoder_kl", "factor": factor, "width": 32, "likelihood": likelihood}
    )
    return build_vae(config, PreprocessConfig(image_size=32)).eval()


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)


def test_diffusers_itself_loads_what_is_written_and_gives_the_same_outputs(
    tmp_path: Path, images: torch.Tensor
) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the extra `interop`")
    vae = small()
    vae.scale = LatentScale(scaling_factor=0.5)
    write_diffusers(vae, tmp_path)
    theirs = diffusers.AutoencoderKL.from_pretrained(str(tmp_path)).eval()
    assert theirs.config.scaling_factor == 0.5
    with torch.no_grad():
        moments = theirs.encode(images / 127.5 - 1).latent_dist
        posterior = vae.encode(images)
        torch.testing.assert_close(moments.mean, posterior.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moments.logvar, posterior.log_variance, rtol=1e-4, atol=1e-5)
        decoded = theirs.decode(posterior.mean).sample
        ours = vae.decode_parameters(posterior.mean)
    torch.testing.assert_close(decoded, ours, rtol=1e-4, atol=1e-5)


def test_weights_go_out_and_come_back_bit_by_bit(tmp_path: Path, images: torch.Tensor) -> None:
    vae = small()
    write_diffusers(vae, tmp_path)
    again = read_diffusers(str(tmp_path))
    assert torch.equal(again.encode(images).mean, vae.encode(images).mean)
    assert again.preprocess == vae.preprocess


def test_attention_weights_under_their_old_names_are_read(
    tmp_path: Path, images: torch.Tensor
) -> None:
    vae = small()
    write_diffusers(vae, tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    for new, old in {
        "to_q": "query",
        "to_k": "key",
        "to_v": "value",
        "to_out.0": "proj_attn",
    }.items():
        for name in [name for name in weights if f".{new}." in name]:
            tensor = weights.pop(name)
            is_weight = name.endswith("weight")
            weights[name.replace(new, old)] = tensor[:, :, None, None] if is_weight else tensor
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / WEIGHTS)
    assert torch.equal(read_diffusers(str(tmp_path)).encode(images).mean, vae.encode(images).mean)


def test_what_is_no_autoencoder_of_images_is_refused_with_every_reason(tmp_path: Path) -> None:
    write_diffusers(small(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"act_fn": "tanh", "in_channels": 4, "up_block_types": ["UpBlock2D"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"up_block_types has UpBlock2D.*in_channels 4.*act_fn"):
        read_diffusers(str(tmp_path))


def test_other_networks_and_likelihoods_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no diffusers"):
        write_diffusers(build_vae(ModelConfig(width=8), PreprocessConfig()), tmp_path)
    with pytest.raises(ModelError, match="one value per pixel"):
        write_diffusers(small(likelihood="logistic"), tmp_path)
    assert find_diffusers(str(tmp_path)) is None


def test_a_folder_that_lacks_a_weight_is_refused_and_never_filled_with_random_numbers(
    tmp_path: Path,
) -> None:
    write_diffusers(small(), tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    for name in ("encoder.conv_in.weight", "decoder.conv_out.bias"):
        save_file({n: tensor for n, tensor in weights.items() if n != name}, tmp_path / WEIGHTS)
        with pytest.raises(ModelError, match=rf"missing.*{name}"):
            read_diffusers(str(tmp_path))


def rewrite(folder: Path, shards: int, variant: str = "") -> None:
    """The weights as diffusers shards them, or as a variant."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    dot = f".{variant}" if variant else ""
    if shards == 1:
        save_file(weights, folder / f"diffusion_pytorch_model{dot}.safetensors")
        return
    names, places = sorted(weights), dict[str, str]()
    for number in range(shards):
        mine = {name: weights[name] for name in names[number::shards]}
        file = f"diffusion_pytorch_model{dot}-{number + 1:05d}-of-{shards:05d}.safetensors"
        save_file(mine, folder / file)
        places |= dict.fromkeys(mine, file)
    index = folder / f"diffusion_pytorch_model.safetensors.index{dot}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


@pytest.mark.parametrize(("shards", "variant"), [(1, "fp16"), (3, ""), (2, "bf16")])
def test_sharded_weights_and_variants_are_the_same_weights(
    tmp_path: Path, shards: int, variant: str
) -> None:
    write_diffusers(small(), tmp_path)
    digest = read_diffusers(str(tmp_path)).digest
    rewrite(tmp_path, shards, variant)
    assert read_diffusers(str(tmp_path)).digest == digest


def test_shards_and_variants_that_diffusers_writes_are_read(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the extra `interop`")
    write_diffusers(small(), tmp_path / "plain")
    theirs = diffusers.AutoencoderKL.from_pretrained(str(tmp_path / "plain"))
    for name, given in {"s": {}, "v": {"variant": "fp16"}}.items():
        theirs.save_pretrained(str(tmp_path / name), max_shard_size="2MB", **given)
        assert len(list((tmp_path / name).glob("*.safetensors"))) > 1
        found = read_diffusers(str(tmp_path / name))
        assert found.digest == read_diffusers(str(tmp_path / "plain")).digest


def test_two_variants_without_a_plain_one_are_refused_by_their_names(tmp_path: Path) -> None:
    write_diffusers(small(), tmp_path)
    data = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).unlink()
    for variant in ("fp16", "non_ema"):
        (tmp_path / f"diffusion_pytorch_model.{variant}.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match="variants fp16, non_ema"):
        read_diffusers(str(tmp_path))


def test_an_index_that_leads_out_of_its_folder_or_lies_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    write_diffusers(small(), folder)
    (folder / WEIGHTS).rename(tmp_path / "outside.safetensors")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    for named, said in (("../outside.safetensors", "leads out"), ("none.safetensors", "not exist")):
        index.write_text(json.dumps({"weight_map": {"encoder.conv_in.bias": named}}))
        with pytest.raises(PipelineError, match=said):
            read_diffusers(str(folder))
    (tmp_path / "outside.safetensors").rename(folder / "none.safetensors")
    with pytest.raises(ModelError, match=r"it and none\.safetensors differ in"):
        read_diffusers(str(folder))


def test_a_tensor_that_two_shards_hold_is_refused(tmp_path: Path) -> None:
    write_diffusers(small(), tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    first, *others = sorted(weights)
    (tmp_path / WEIGHTS).unlink()
    save_file({first: weights[first]}, tmp_path / "a.safetensors")
    save_file({first: weights[first] + 1} | {k: weights[k] for k in others},
              tmp_path / "b.safetensors")  # fmt: skip
    shards = {first: "a.safetensors"} | dict.fromkeys(others, "b.safetensors")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ModelError, match=r"it and b\.safetensors differ in \['decoder"):
        read_diffusers(str(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_finite_numbers_are_refused(tmp_path: Path, value: float) -> None:
    write_diffusers(small(), tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    weights["encoder.conv_in.weight"].view(-1)[0] = value
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match=r"not finite, in \['network\.encoder\.conv_in\.weight'\]"):
        read_diffusers(str(tmp_path))


def test_a_pickle_is_never_opened_and_the_reason_is_said(tmp_path: Path) -> None:
    write_diffusers(small(), tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"model\.bin, a pickle, which runs code"):
        read_diffusers(str(tmp_path))
    (tmp_path / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=f"holds no {WEIGHTS}"):
        read_diffusers(str(tmp_path))


@pytest.mark.parametrize("name", ["AutoencoderKLWan", "UNet2DConditionModel"])
def test_other_classes_are_refused_by_their_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name, "sample_size": 8}))
    with pytest.raises(ModelError, match=f"is a diffusers {name}"):
        load_folder(str(tmp_path))


def test_a_pipelines_folder_is_read_at_its_vae_and_as_a_bundle_of_the_same_digest(
    tmp_path: Path,
) -> None:
    vae = small()
    vae.scale = LatentScale(0.3611, 0.1159, force_upcast=False)
    write_diffusers(vae, tmp_path / "pipe/vae")
    (tmp_path / "pipe/model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    found = load_folder(str(tmp_path / "pipe"))
    digest = save_bundle(found, tmp_path / "bundle")
    again = load_bundle(tmp_path / "bundle")
    assert found.digest == digest == again.digest
    assert again.scale == vae.scale
    with pytest.raises(ModelError, match="another model lies there now"):
        load_folder(str(tmp_path / "pipe"), digest="0" * 64)


def test_a_model_whose_latents_are_scaled_otherwise_is_another_model(tmp_path: Path) -> None:
    vae = small()
    one = save_bundle(vae, tmp_path / "one")
    vae.scale = LatentScale(scaling_factor=0.18215)
    assert save_bundle(vae, tmp_path / "two") != one
    receipt = tmp_path / "two/bundle.json"
    receipt.write_bytes(receipt.read_bytes().replace(b"0.18215", b"0.28215"))
    with pytest.raises(ModelError):
        load_bundle(tmp_path / "two")


def test_a_config_that_claims_an_enormous_network_costs_no_memory(tmp_path: Path) -> None:
    write_diffusers(small(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["block_out_channels"] = [2**20, 2**20, 2**20]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"don't fit this model|a network that can't be"):
        read_diffusers(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"latents_mean": [0.0, 1.0]},
        {"latents_mean": [0.0], "latents_std": [0.0]},
        {"layers_per_block": "two"},
        {"block_out_channels": []},
        {"layers_per_block": 1, "latent_channels": "x", "act_fn": [], "sample_size": "y"},
        {"norm_num_groups": 7}, {"sample_size": 0}, {"sample_size": -5}, {"sample_size": []},
    ],
)  # fmt: skip
def test_a_config_without_sense_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    write_diffusers(small(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as refused:
        read_diffusers(str(tmp_path))
    said = str(refused.value)
    assert len(said.splitlines()) == 1
    assert "errors.pydantic.dev" not in said
