import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.errors import ModelError
from pipeline.vae import VAE, build_vae, load_bundle, save_bundle, verify_bundle
from pipeline.vae.bundle import BUNDLE


def new_vae(seed: int = 0) -> VAE:
    torch.manual_seed(seed)
    return build_vae(ModelConfig(width=8), PreprocessConfig(image_size=8, channels=1))


def test_a_loaded_model_gives_the_same_bits(tmp_path: Path) -> None:
    vae = new_vae()
    digest = save_bundle(vae, tmp_path, {"run": "a", "step": 7})
    loaded = load_bundle(str(tmp_path))
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(loaded.encode(images).mean, vae.encode(images).mean)
    assert loaded.digest == vae.digest == digest
    assert loaded.metadata == {"run": "a", "step": 7}
    assert not loaded.training
    assert verify_bundle(tmp_path) == digest


def test_a_model_is_read_and_used_without_torchs_compiler_whose_import_takes_seconds(
    tmp_path: Path,
) -> None:
    save_bundle(new_vae(), tmp_path)
    code = (
        "import sys, torch; from pipeline.encoding.determinism import exact_numerics\n"
        "from pipeline.vae import load_bundle\n"
        f"vae = load_bundle({str(tmp_path)!r})\n"
        "with exact_numerics(), torch.no_grad():\n"
        "    vae.encode(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))\n"
        "assert not {'torch._dynamo', 'torch._inductor'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loading_leaves_the_global_generator_where_it_was(tmp_path: Path) -> None:
    save_bundle(new_vae(), tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_bundle(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_saving_again_changes_no_byte_and_other_weights_another_digest(tmp_path: Path) -> None:
    first = save_bundle(new_vae(), tmp_path / "a")
    second = save_bundle(new_vae(), tmp_path / "b")
    assert first == second
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert save_bundle(new_vae(1), tmp_path / "c") != first


def test_safetensors_itself_opens_the_weights(tmp_path: Path) -> None:
    vae = new_vae()
    save_bundle(vae, tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert weights.keys() == vae.state_dict().keys()


@pytest.mark.parametrize("name", ["config.json", "preprocess.json", "model.safetensors"])
def test_a_changed_byte_in_any_file_is_named(tmp_path: Path, name: str) -> None:
    save_bundle(new_vae(), tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[-2] ^= 1
    (tmp_path / name).write_bytes(bytes(data))
    with pytest.raises(ModelError, match=name):
        load_bundle(tmp_path)
    with pytest.raises(ModelError, match=name):
        verify_bundle(tmp_path)


def test_a_folder_without_its_receipt_is_no_bundle(tmp_path: Path) -> None:
    save_bundle(new_vae(), tmp_path)
    (tmp_path / "bundle.json").unlink()
    with pytest.raises(ModelError, match=r"no bundle\.json"):
        load_bundle(tmp_path)


def test_a_bundle_of_another_version_is_refused(tmp_path: Path) -> None:
    save_bundle(new_vae(), tmp_path)
    receipt = json.loads((tmp_path / "bundle.json").read_text())
    (tmp_path / "bundle.json").write_text(json.dumps({**receipt, "version": 99}))
    with pytest.raises(ModelError, match="version 99"):
        load_bundle(tmp_path)
    own = {n: v for n, v in receipt.items() if n not in ("checksum", "format", "version")}
    (tmp_path / "bundle.json").write_bytes(BUNDLE.encode({**own, "digest": "0" * 64}))
    with pytest.raises(ModelError, match="digest 0000"):
        load_bundle(tmp_path)


def test_a_bundle_from_before_a_knob_existed_still_loads_with_its_own_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An older program's config.json simply lacks the key.
    whole = ModelConfig.model_dump

    def older(self: ModelConfig, **options: object) -> dict[str, object]:
        return {k: v for k, v in whole(self, **options).items() if k != "posterior"}  # type: ignore[arg-type]

    monkeypatch.setattr(ModelConfig, "model_dump", older)
    digest = save_bundle(new_vae(), tmp_path)
    monkeypatch.undo()
    assert "posterior" not in json.loads((tmp_path / "config.json").read_text())
    assert load_bundle(tmp_path).digest == digest


def test_a_folder_of_another_format_is_no_bundle_and_its_format_is_named(tmp_path: Path) -> None:
    save_bundle(new_vae(), tmp_path)
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": "cake"}))
    with pytest.raises(ModelError, match=r"bundle\.json: is 'cake' version 3; this program reads"):
        load_bundle(tmp_path)
    path.write_text("[1]")
    with pytest.raises(ModelError, match=r"bundle\.json"):
        load_bundle(tmp_path)
