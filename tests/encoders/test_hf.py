"""Backbones of transformers as lists of stages: equal to the library's own, small, without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mtlbench.errors import MtlbenchError
from mtlbench.testing import check_encoder
from mtlbench_zoo.encoders import hf
from mtlbench_zoo.encoders.hf import HF

transformers = pytest.importorskip("transformers", reason="the extra mtlbench[hf] is not installed")

SWIN = "embed_dim=8,depths=[1,2],num_heads=[2,2],window_size=4,drop_path_rate=0.0"
CONVNEXT = "hidden_sizes=[8,12,16],depths=[1,1,1],num_stages=3"
SMALL = {
    "bit": "embedding_size=8,hidden_sizes=[32,64],depths=[1,1],num_groups=2",
    "convnext": CONVNEXT,
    "convnextv2": CONVNEXT,
    "dinov3_convnext": "hidden_sizes=[8,12],depths=[1,1]",
    "focalnet": "embed_dim=8,depths=[1,1],hidden_sizes=[8,16],focal_levels=[2,2],focal_windows=[3,3]",
    "hgnet_v2": "",
    "pvt_v2": "hidden_sizes=[8,16,16,16],depths=[1,1,1,1],num_attention_heads=[1,2,2,2]",
    "resnet": "embedding_size=8,hidden_sizes=[8,16],depths=[1,2],layer_type=basic",
    "rt_detr_resnet": "embedding_size=8,hidden_sizes=[8,16],depths=[1,1],layer_type=basic",
    "swin": SWIN,
    "swinv2": SWIN,
    "textnet": "hidden_sizes=[8,8,8,8,8],stem_out_channels=8",
}
VIT = "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,patch_size=8,image_size=32"


def theirs(name: str, config: str, in_channels: int) -> Any:
    """The library's own backbone, from the same random stream, giving every stage as it is."""
    default = transformers.AutoConfig.for_model(name)
    settings = hf._settings(default, config, "")
    channels = {"num_channels": in_channels} if hasattr(default, "num_channels") else {}
    made = transformers.AutoConfig.for_model(name, **channels, **settings)
    made = transformers.AutoConfig.for_model(
        name, **channels, **settings, out_features=[s for s in made.stage_names if s != "stem"]
    )
    for key, value in vars(made).items():
        if isinstance(value, tuple):
            setattr(made, key, list(value))
    torch.manual_seed(0)
    backbone = transformers.AutoBackbone.from_config(made).eval()
    for stage in list(getattr(backbone, "hidden_states_norms", {}))[:-1]:
        backbone.hidden_states_norms[stage] = nn.Identity()
    return backbone


@pytest.mark.parametrize("name", SMALL)
def test_stages_give_what_the_backbone_gives(name: str) -> None:
    assert set(SMALL) == set(hf._SPLITS)
    oracle = theirs(name, SMALL[name], 3)
    torch.manual_seed(0)
    encoder = HF(3, name=name, config=SMALL[name]).eval()
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        found = encoder(x)
        expected = oracle(x).feature_maps
        if name == "focalnet":  # whose backbone gives the last map as it is, and others after downsampling
            before: list[Any] = []
            for stage in oracle.focalnet.encoder.stages:
                stage.register_forward_hook(lambda module, inputs, outputs: before.append(outputs[1]))
            assert torch.equal(oracle(x).feature_maps[-1], expected[-1])
            sizes = [(16 // 2**i, 24 // 2**i) for i in range(len(before))]
            expected = [t.transpose(1, 2).unflatten(2, s) for t, s in zip(before, sizes, strict=True)]
    assert len(expected) == len(encoder.stages)
    for ours, one in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, one, rtol=1e-4, atol=1e-5)
    assert encoder.shape.strides[0] == 4
    assert encoder.shape.channels == tuple(f.shape[1] for f in expected)
    assert encoder.initialised


@pytest.mark.parametrize("name", ["resnet", "convnext", "swin", "swinv2", "pvt_v2"])
def test_the_contract_is_kept(name: str) -> None:
    check_encoder(HF, name=name, config=SMALL[name])


def test_a_plain_transformer_is_one_stage() -> None:
    torch.manual_seed(0)
    encoder = HF(1, name="dinov2", config=VIT).eval()
    assert (encoder.shape.channels, encoder.shape.strides) == ((16,), (8,))
    assert encoder(torch.rand(2, 1, 40, 64))[0].shape == (2, 16, 5, 8)
    frozen = [key for key, p in encoder.named_parameters() if not p.requires_grad]
    assert [key.rpartition(".")[2] for key in frozen] == ["mask_token"]
    for parameter in encoder.parameters():
        parameter.grad = None
    encoder(torch.rand(2, 1, 32, 32))[0].square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder as save_pretrained leaves it, with weights of its own and the statistics of its images."""
    torch.manual_seed(3)
    theirs("resnet", SMALL["resnet"], 3).save_pretrained(tmp_path / "one")
    (tmp_path / "one" / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.5, 0.25]}'
    )
    return tmp_path / "one"


def test_a_saved_model_keeps_its_weights_and_statistics(saved: Path, tmp_path: Path) -> None:
    every = transformers.AutoConfig.from_pretrained(str(saved), out_features=["stage1", "stage2"])
    oracle = transformers.ResNetBackbone.from_pretrained(saved, config=every, dtype=torch.float32).eval()
    encoder = HF(3, name=str(saved)).eval()
    x = torch.rand(2, 3, 64, 64)
    mean, deviation = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.5, 0.5, 0.25])
    shifted = (x - mean[:, None, None]) / deviation[:, None, None]
    with torch.no_grad():
        for ours, one in zip(encoder(x), oracle(shifted).feature_maps, strict=True):
            torch.testing.assert_close(ours, one)
        raw = HF(3, name=str(saved), normalize=False).eval()
        torch.testing.assert_close(raw(x)[0], oracle(x).feature_maps[0])
    weights = load_file(saved / "model.safetensors")
    kept = {key: value for key, value in weights.items() if key != "embedder.embedder.convolution.weight"}
    (tmp_path / "less").mkdir()
    save_file(kept, tmp_path / "less" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "less" / "config.json").write_bytes((saved / "config.json").read_bytes())
    with pytest.raises(MtlbenchError, match=r"1 weights are missing, such as embedder\.embedder\.convol"):
        HF(3, name=str(tmp_path / "less"))
    moved = saved.rename(tmp_path / "two")
    parameters = {"config": "", "normalize": None}
    named = HF.identity({"name": str(moved), **parameters})
    assert named["name"].startswith("sha256:")
    assert HF.identity({"name": "resnet", **parameters}) == {"name": "resnet", **parameters}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: HF(3, name="reznet"),
            r"'hf:reznet': there is no such model .*\. Did you mean 'resnet'.*swin",
        ),
        (lambda: HF(3, name="./gone"), "no such model type and no such folder"),
        (lambda: HF(3, name="resnet", config="depth=[1]"), r"no setting 'depth'\. Did you mean 'depths'"),
        (lambda: HF(3, name="resnet", config="depths=[1"), "cannot read 'config"),
        (lambda: HF(3, name="resnet", config="hidden_act=nothing"), "'hf:resnet' cannot be made: .*nothing"),
        (lambda: HF(3, name="dinat"), "'hf:dinat' cannot be made: ImportError: .* natten"),
    ],
)
def test_what_cannot_be_made_is_one_line(make: Callable[[], HF], message: str) -> None:
    with pytest.raises(MtlbenchError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_without_a_network_the_hub_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **more: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(
        MtlbenchError, match=r"cannot be downloaded \(OSError: no route to host\); give a local"
    ):
        HF(3, name="someone/some-model")


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MtlbenchError, match=r"'hf:swin' needs transformers: pip install 'mtlbench\[hf\]'"):
        HF(3, name="swin")


def test_a_run_on_a_backbone(experiment: Callable[..., Any]) -> None:
    setting = experiment(encoder=f"hf:resnet[config='{SMALL['resnet']}']", tasks=("mask", "box"))
    assert setting._identity(setting.run)["spec"]["encoder"]["parameters"]["name"] == "resnet"
