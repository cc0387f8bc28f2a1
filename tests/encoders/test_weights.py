"""Pretrained weights: loaded exactly, refused clearly, downloaded once, and part of what a run is called."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mtlbench.contracts import Encoder
from mtlbench.errors import MtlbenchError
from mtlbench.training.model import build
from mtlbench_zoo.encoders import _weights
from mtlbench_zoo.encoders.resnet import ResNet18
from mtlbench_zoo.encoders.segnet import SegNet
from mtlbench_zoo.encoders.vgg import VGG16

HED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "vgg16-hed-fp16.safetensors"
needs_hed = pytest.mark.skipif(not HED.exists(), reason=f"there is no {HED.name} in ../shared/data")


def trained(encoder: Encoder, prefix: str = "") -> dict[str, Tensor]:
    """The state of an encoder as torchvision names it, every tensor moved away from its initial value."""
    generator = torch.Generator().manual_seed(5)
    state = {prefix + key.partition(".")[2]: value for key, value in encoder.stages.state_dict().items()}
    return {
        key: value + 0.1 * torch.rand(value.shape, generator=generator)
        if value.is_floating_point()
        else value
        for key, value in state.items()
    }


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A whole VGG-16 as torchvision saves it, with a classifier."""
    state = trained(VGG16(3), "features.")
    path = tmp_path_factory.mktemp("weights") / "vgg.pth"
    torch.save(state | {"classifier.0.weight": torch.zeros(2, 2)}, path)
    return path, state


def test_every_weight_arrives(vgg: tuple[Path, dict[str, Tensor]]) -> None:
    path, state = vgg
    encoder = VGG16(3, weights=str(path))
    assert encoder.initialised
    for key, value in encoder.stages.state_dict().items():
        assert torch.equal(value, state[f"features.{key.partition('.')[2]}"])
    assert not VGG16(3).initialised


def test_half_precision_and_bare_keys_are_read(tmp_path: Path) -> None:
    state = {key: value.half() for key, value in trained(VGG16(3)).items()}
    save_file(state, tmp_path / "w.safetensors")
    encoder = VGG16(3, weights=str(tmp_path / "w.safetensors"))
    for key, value in encoder.stages.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[key.partition(".")[2]].float())


def test_resnet_reads_old_files_without_counters(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = trained(ResNet18(3))
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(old | {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}, tmp_path / "r.pth")
    encoder = ResNet18(3, weights=str(tmp_path / "r.pth"), dilated=True)
    assert torch.equal(encoder.stages[4].layer4[1].conv2.weight, state["layer4.1.conv2.weight"])  # type: ignore[union-attr, index]


def test_batch_norm_swallows_torchvisions_biases(tmp_path: Path) -> None:
    """Our convolutions before a norm have none; the function is the same."""
    torch.manual_seed(0)
    encoder = VGG16(3, batch_norm=True).eval()
    state = trained(encoder)
    state |= {
        key.replace("weight", "bias"): torch.randn(len(value))
        for key, value in state.items()
        if value.dim() == 4
    }
    torch.save({f"features.{key}": value for key, value in state.items()}, tmp_path / "bn.pth")
    ours = VGG16(3, batch_norm=True, weights=str(tmp_path / "bn.pth"), normalize=False).eval()
    x = torch.rand(1, 3, 16, 16)
    y = x
    with torch.no_grad():
        for number in (0, 3):  # torchvision's first stage, written out
            y = nn.functional.conv2d(y, state[f"{number}.weight"], state[f"{number}.bias"], padding=1)
            norm = (state[f"{number + 1}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
            y = nn.functional.batch_norm(y, *norm).relu()
        torch.testing.assert_close(ours(x)[0], y)
        segnet = SegNet(3, weights=str(tmp_path / "bn.pth"), normalize=False).eval()
        assert all(torch.equal(a, b) for a, b in zip(segnet(x), ours(x), strict=True))


def test_segnet_takes_the_convolutions_of_a_plain_vgg(vgg: tuple[Path, dict[str, Tensor]]) -> None:
    path, state = vgg
    encoder = SegNet(3, weights=str(path))
    ours = [part.weight for part in encoder.modules() if isinstance(part, nn.Conv2d)]
    theirs = [value for value in state.values() if value.dim() == 4]
    assert len(ours) == 13
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    norms = [part for part in encoder.modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(norm.weight.eq(1).all() and norm.bias.eq(0).all() for norm in norms)


def change(state: dict[str, Tensor], **more: Tensor | None) -> dict[str, Tensor]:
    merged = state | {key.replace("_", "."): value for key, value in more.items() if value is not None}
    return {key: value for key, value in merged.items() if more.get(key.replace(".", "_"), value) is not None}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"features_0_weight": None, "features_0_bias": None},
            r"2 missing \(0\.weight, 0\.bias\)$",
        ),
        ({"features_99_weight": torch.zeros(1)}, r"1 unexpected \(99\.weight\)$"),
        (
            {"features_0_weight": torch.zeros(64, 1, 3, 3)},
            r"1 of another shape \(0\.weight \[64, 1, 3, 3\] instead of \[64, 3, 3, 3\]\)$",
        ),
        (
            {"features_0_weight": None, "features_x": torch.zeros(1)},
            r"do not fit: 1 missing \(0\.weight\); 1 unexpected \(x\)$",
        ),
    ],
)
def test_what_does_not_fit_is_listed(
    more: dict[str, Tensor | None], message: str, vgg: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    save_file(change(vgg[1], **more), path)
    with pytest.raises(MtlbenchError, match=message) as caught:
        VGG16(3, weights=str(path))
    assert str(caught.value).startswith(f"encoder 'vgg16': weights '{path}' do not fit: ")


def test_a_long_list_is_cut(vgg: tuple[Path, dict[str, Tensor]]) -> None:
    with pytest.raises(MtlbenchError, match=r"100 missing .*, and 96 more\); 26 unexpected"):
        ResNet18(3, weights=str(vgg[0]))
    with pytest.raises(MtlbenchError, match=r"'vgg16': weights .* do not fit"):
        VGG16(3, batch_norm=True, weights=str(vgg[0]))


class Code:
    """What a pickle could run."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("was-run"),))


def test_other_files_are_refused_and_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": Code()}, "code.pth")
    Path("torn.pth").write_bytes(b"PK\x03\x04")
    Path("empty.pth").touch()
    Path("torn.safetensors").write_bytes(b"\x08" * 20)
    torch.save({"state_dict": {"a": torch.zeros(1)}}, "nested.pth")
    torch.save([1, 2], "list.pth")
    torch.save({1: torch.zeros(1)}, "numbered.pth")
    junk = {
        f"{n}.pth": text for n, text in enumerate((b"hello", b"a text", b"\xf0\x80 1", b"V\xff\n.", b"0."))
    }
    for name, text in junk.items():
        Path(name).write_bytes(text)
    for name in ("code.pth", "torn.pth", "empty.pth", "torn.safetensors", *junk):
        with pytest.raises(MtlbenchError, match=rf"weights '{name}' cannot be read; it must be a \.safet"):
            VGG16(3, weights=name)
    for name in ("nested.pth", "list.pth", "numbered.pth"):
        with pytest.raises(MtlbenchError, match=r"do not hold tensors by name; save a model's state_dict"):
            VGG16(3, weights=name)
    with pytest.raises(MtlbenchError, match=r"weights 'imagnet' is no file; give 'imagenet' or the path"):
        VGG16(3, weights="imagnet")
    assert not Path("was-run").exists()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that a local server gives in torchvision's place."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(_weights, "URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("MTLBENCH_DATA", str(tmp_path / "data"))
        yield folder
        server.shutdown()


def test_published_weights_are_downloaded_once(
    site: Path, vgg: tuple[Path, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    digest = hashlib.sha256(vgg[0].read_bytes()).hexdigest()
    name = f"vgg16-{digest[:8]}.pth"
    monkeypatch.setattr(VGG16, "published", classmethod(lambda cls, parameters: name))
    (site / name).write_bytes(vgg[0].read_bytes())
    loaded = VGG16(3, weights="imagenet")
    (site / name).unlink()
    again = VGG16(3, weights="imagenet")
    first = vgg[1]["features.0.weight"]
    for encoder in (loaded, again):
        assert torch.equal(encoder.stages[0][1].weight, first)  # type: ignore[index]
    parameters = {"batch_norm": False, "weights": "imagenet", "normalize": None}
    named = VGG16.identity(parameters)
    assert named == {**parameters, "weights": f"sha256:{digest[:16]}"}
    assert named == VGG16.identity(parameters | {"weights": str(vgg[0])})  # the content, not where it lies
    assert VGG16.identity(parameters | {"weights": None})["weights"] is None
    held = tmp_path / "data" / "weights" / name
    held.write_bytes(b"spoilt")
    with pytest.raises(MtlbenchError, match=r"answered 404 .* use vgg16\[weights=PATH\]"):
        VGG16(3, weights="imagenet")


def test_a_download_with_another_checksum_is_refused(site: Path, tmp_path: Path) -> None:
    (site / "resnet18-f37072fd.pth").write_bytes(b"not what was published")
    with pytest.raises(MtlbenchError, match=r"cannot download resnet18-f37072fd\.pth: .* another checksum"):
        ResNet18(3, weights="imagenet")
    assert list((tmp_path / "data" / "weights").iterdir()) == []


def test_a_run_starts_from_the_weights(
    experiment: Callable[..., Any], vgg: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    setting = experiment(encoder=f"vgg16[weights='{vgg[0]}']", tasks=("side",))
    model, _ = build(setting.run, setting.dataset)
    weight = model.state_dict()["architecture.encoder.stages.0.0.weight"]
    assert torch.equal(weight, vgg[1]["features.0.weight"])
    copy = tmp_path / "elsewhere.pth"
    copy.write_bytes(vgg[0].read_bytes())
    moved = experiment(encoder=f"vgg16[weights='{copy}']", tasks=("side",))
    assert setting._identity(setting.run) == moved._identity(moved.run)
    scratch = experiment(encoder="vgg16", tasks=("side",))
    assert setting._identity(setting.run) != scratch._identity(scratch.run)


@needs_hed
@pytest.mark.real
def test_the_real_file_fits() -> None:
    assert VGG16(3, weights=str(HED)).stages[0][1].weight.std() > 0.05  # type: ignore[index, operator]
    assert SegNet(3, weights=str(HED)).initialised
