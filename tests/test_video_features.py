"""The networks behind FVD, FID, video-FID and LPIPS: layouts, plain re-computations, files.

Nothing here is downloaded: layouts are compared with lists of what the published definitions make,
and values with second implementations on random weights. Each list names the file it was read from.
"""

import hashlib
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lmdvid.networks import WeightsError
from lmdvid.networks.features import frozen, i3d, inception, lpips, published, resnext3d
from lmdvid.networks.features.published import Published


def normalised(name: str, conv: str, shape: tuple[int, ...], norm: str | None = None) -> dict:
    """Names and shapes of a convolution without bias and its batch normalisation."""
    norm = norm or f"{name}.bn"
    found = {f"{name}.{conv}.weight" if conv else f"{name}.weight": shape}
    found |= {f"{norm}.{k}": shape[:1] for k in ("weight", "bias", "running_mean", "running_var")}
    return found | {f"{norm}.num_batches_tracked": ()}


def i3d_layout() -> dict:
    """`InceptionI3d` of piergiaj/pytorch-i3d, pytorch_i3d.py.

    wilson1yan/VideoGPT, whose conversion is the weight file, has it as videogpt/fvd/pytorch_i3d.py.
    """
    layout = normalised("Conv3d_1a_7x7", "conv3d", (64, 3, 7, 7, 7))
    layout |= normalised("Conv3d_2b_1x1", "conv3d", (64, 64, 1, 1, 1))
    layout |= normalised("Conv3d_2c_3x3", "conv3d", (192, 64, 3, 3, 3))
    for name, width, sizes in [
        ("3b", 192, (64, 96, 128, 16, 32, 32)),
        ("3c", 256, (128, 128, 192, 32, 96, 64)),
        ("4b", 480, (192, 96, 208, 16, 48, 64)),
        ("4c", 512, (160, 112, 224, 24, 64, 64)),
        ("4d", 512, (128, 128, 256, 24, 64, 64)),
        ("4e", 512, (112, 144, 288, 32, 64, 64)),
        ("4f", 528, (256, 160, 320, 32, 128, 128)),
        ("5b", 832, (256, 160, 320, 32, 128, 128)),
        ("5c", 832, (384, 192, 384, 48, 128, 128)),
    ]:
        a, b, c, d, e, f = sizes
        for branch, out, inner, k in [
            ("b0", a, width, 1), ("b1a", b, width, 1), ("b1b", c, b, 3),
            ("b2a", d, width, 1), ("b2b", e, d, 3), ("b3b", f, width, 1),
        ]:  # fmt: skip
            layout |= normalised(f"Mixed_{name}.{branch}", "conv3d", (out, inner, k, k, k))
    return layout | {
        "logits.conv3d.weight": (400, 1024, 1, 1, 1), "logits.conv3d.bias": (400,)
    }  # fmt: skip


def inception_layout() -> dict:
    """`fid_inception_v3` of mseitzer/pytorch-fid, src/pytorch_fid/inception.py.

    1008 classes, no auxiliary classifier; blocks of pytorch/vision, models/inception.py.
    """
    table = {
        "Conv2d_1a_3x3": (32, 3, 3, 3), "Conv2d_2a_3x3": (32, 32, 3, 3),
        "Conv2d_2b_3x3": (64, 32, 3, 3), "Conv2d_3b_1x1": (80, 64, 1, 1),
        "Conv2d_4a_3x3": (192, 80, 3, 3),
    }  # fmt: skip
    for name, width, pooled in [("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)]:
        for branch, shape in {
            "branch1x1": (64, width, 1, 1), "branch5x5_1": (48, width, 1, 1),
            "branch5x5_2": (64, 48, 5, 5), "branch3x3dbl_1": (64, width, 1, 1),
            "branch3x3dbl_2": (96, 64, 3, 3), "branch3x3dbl_3": (96, 96, 3, 3),
            "branch_pool": (pooled, width, 1, 1),
        }.items():  # fmt: skip
            table[f"Mixed_{name}.{branch}"] = shape
    for branch, shape in {
        "branch3x3": (384, 288, 3, 3), "branch3x3dbl_1": (64, 288, 1, 1),
        "branch3x3dbl_2": (96, 64, 3, 3), "branch3x3dbl_3": (96, 96, 3, 3),
    }.items():  # fmt: skip
        table[f"Mixed_6a.{branch}"] = shape
    for name, c in [("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)]:
        for branch, shape in {
            "branch1x1": (192, 768, 1, 1), "branch7x7_1": (c, 768, 1, 1),
            "branch7x7_2": (c, c, 1, 7), "branch7x7_3": (192, c, 7, 1),
            "branch7x7dbl_1": (c, 768, 1, 1), "branch7x7dbl_2": (c, c, 7, 1),
            "branch7x7dbl_3": (c, c, 1, 7), "branch7x7dbl_4": (c, c, 7, 1),
            "branch7x7dbl_5": (192, c, 1, 7), "branch_pool": (192, 768, 1, 1),
        }.items():  # fmt: skip
            table[f"Mixed_{name}.{branch}"] = shape
    for branch, shape in {
        "branch3x3_1": (192, 768, 1, 1), "branch3x3_2": (320, 192, 3, 3),
        "branch7x7x3_1": (192, 768, 1, 1), "branch7x7x3_2": (192, 192, 1, 7),
        "branch7x7x3_3": (192, 192, 7, 1), "branch7x7x3_4": (192, 192, 3, 3),
    }.items():  # fmt: skip
        table[f"Mixed_7a.{branch}"] = shape
    for name, width in [("7b", 1280), ("7c", 2048)]:
        for branch, shape in {
            "branch1x1": (320, width, 1, 1), "branch3x3_1": (384, width, 1, 1),
            "branch3x3_2a": (384, 384, 1, 3), "branch3x3_2b": (384, 384, 3, 1),
            "branch3x3dbl_1": (448, width, 1, 1), "branch3x3dbl_2": (384, 448, 3, 3),
            "branch3x3dbl_3a": (384, 384, 1, 3), "branch3x3dbl_3b": (384, 384, 3, 1),
            "branch_pool": (192, width, 1, 1),
        }.items():  # fmt: skip
            table[f"Mixed_{name}.{branch}"] = shape
    layout = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, shape in table.items():
        layout |= normalised(name, "conv", shape)
    return layout


def resnext_layout() -> dict:
    """`resnet101` of kenshohara/3D-ResNets-PyTorch, models/resnext.py: shortcuts B, 32 groups.

    wyhsirius/g3an-project has it as evaluation/models/resnext.py.
    """
    layout = normalised("conv1", "", (64, 3, 7, 7, 7), "bn1")
    layout |= {"fc.weight": (400, 2048), "fc.bias": (400,)}
    width = 64
    for index, blocks in enumerate((3, 4, 23, 3), 1):
        inner, out = 64 * 2**index, 128 * 2**index
        for block in range(blocks):
            name = f"layer{index}.{block}"
            layout |= normalised(f"{name}.conv1", "", (inner, width, 1, 1, 1), f"{name}.bn1")
            layout |= normalised(f"{name}.conv2", "", (inner, inner // 32, 3, 3, 3), f"{name}.bn2")
            layout |= normalised(f"{name}.conv3", "", (out, inner, 1, 1, 1), f"{name}.bn3")
            if block == 0:
                shape = (out, width, 1, 1, 1)
                layout |= normalised(f"{name}.downsample.0", "", shape, f"{name}.downsample.1")
            width = out
    return layout


@pytest.mark.parametrize(
    ("network", "layout", "parameters"),
    [
        (i3d.I3DNetwork, i3d_layout(), 12_697_264),
        (inception.InceptionNetwork, inception_layout(), 23_850_960),
        (resnext3d.ResNeXt101, resnext_layout(), 48_340_816),
        (
            lpips.alexnet,  # of pytorch/vision, torchvision/models/alexnet.py: `features`
            {
                f"{i}.{k}": s if k == "weight" else s[:1]
                for i, s in {
                    0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3),
                    8: (256, 384, 3, 3), 10: (256, 256, 3, 3),
                }.items()
                for k in ("weight", "bias")
            },
            2_469_696,
        ),
        (
            lpips.vgg16,  # of pytorch/vision, torchvision/models/vgg.py: `features` of "D"
            {
                f"{i}.{k}": (o, w, 3, 3) if k == "weight" else (o,)
                for i, o, w in [
                    (0, 64, 3), (2, 64, 64), (5, 128, 64), (7, 128, 128), (10, 256, 128),
                    (12, 256, 256), (14, 256, 256), (17, 512, 256), (19, 512, 512),
                    (21, 512, 512), (24, 512, 512), (26, 512, 512), (28, 512, 512),
                ]
                for k in ("weight", "bias")
            },
            14_714_688,
        ),
    ],
)  # fmt: skip
def test_layout_is_the_published_one(network, layout, parameters):
    with torch.device("meta"):
        built = network()
    assert {k: tuple(v.shape) for k, v in built.state_dict().items()} == layout
    assert sum(p.numel() for p in built.parameters()) == parameters


def test_i3d_reads_what_the_published_conversion_writes():
    """The names that songweige/TATS, tats/fvd/convert_tf_pretrained.py, gives TensorFlow's.

    Of a convolution `w`, of its normalisation `beta`, `moving_mean` and `moving_variance`; there is
    no gamma, for which it writes ones, and no counter of batches. In Mixed_5b the graph calls the
    second convolution of branch 2 `Conv3d_0a_3x3`, elsewhere `Conv3d_0b_3x3`.
    """
    branches = {
        "Branch_0/Conv3d_0a_1x1": "b0", "Branch_1/Conv3d_0a_1x1": "b1a",
        "Branch_1/Conv3d_0b_3x3": "b1b", "Branch_2/Conv3d_0a_1x1": "b2a",
        "Branch_2/Conv3d_0b_3x3": "b2b", "Branch_3/Conv3d_0b_1x1": "b3b",
    }  # fmt: skip
    graph = {f"Conv3d_{n}": f"Conv3d_{n}" for n in ("1a_7x7", "2b_1x1", "2c_3x3")}
    for name in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"):
        for branch, ours in branches.items():
            branch = branch.replace("2/Conv3d_0b", "2/Conv3d_0a") if name == "5b" else branch
            graph[f"Mixed_{name}/{branch}"] = f"Mixed_{name}.{ours}"
    assert len(graph) == 57
    written = {"logits.conv3d.weight", "logits.conv3d.bias"}  # Logits/Conv3d_0c_1x1/conv_3d/w, b
    for ours in graph.values():
        written |= {f"{ours}.conv3d.weight", f"{ours}.bn.weight", f"{ours}.bn.bias"}
        written |= {f"{ours}.bn.running_mean", f"{ours}.bn.running_var"}
    layout = {k: v for k, v in i3d_layout().items() if not k.endswith("num_batches_tracked")}
    assert set(layout) == written
    with torch.device("meta"):
        network = i3d.I3DNetwork()
    published.fill(network, {k: torch.zeros(s) for k, s in layout.items()}, published.I3D, "it")
    # Sonnet's default (google-deepmind/sonnet, version 1, batch_norm.py), which the graph has; also
    # pytorch-i3d's and hassony2/kinetics_i3d_pytorch's.
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm3d)]
    assert {norm.eps for norm in norms} == {1e-3}
    assert len(norms) == 57


def test_epsilons_and_strides_are_the_published_ones():
    """What no state dict tells; from the files that the layouts name."""
    with torch.device("meta"):
        fid, resnext = inception.InceptionNetwork(), resnext3d.ResNeXt101()
    assert {m.eps for m in fid.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    assert {m.eps for m in resnext.modules() if isinstance(m, nn.BatchNorm3d)} == {1e-5}
    strided = {n for n, m in fid.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)}
    assert strided == {
        "Conv2d_1a_3x3.conv", "Mixed_6a.branch3x3.conv", "Mixed_6a.branch3x3dbl_3.conv",
        "Mixed_7a.branch3x3_2.conv", "Mixed_7a.branch7x7x3_4.conv",
    }  # fmt: skip
    strided = {
        n for n, m in resnext.named_modules() if isinstance(m, nn.Conv3d) and m.stride == (2, 2, 2)
    }
    assert strided == {
        f"layer{i}.0.{name}" for i in (2, 3, 4) for name in ("conv2", "downsample.0")
    }
    assert resnext.conv1.stride == (1, 2, 2)
    groups = [m.groups for n, m in resnext.named_modules() if n.endswith("conv2")]
    assert groups == [32] * 33


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_heads_are_the_published_ones(net):
    """`NetLinLayer` of richzhang/PerceptualSimilarity, lpips/lpips.py: a dropout, a convolution.

    And lpips/pretrained_networks.py: behind which layers of `features` a slice ends.
    """
    channels, ends = {
        "alex": ((64, 192, 384, 256, 256), (2, 5, 8, 10, 12)),
        "vgg": ((64, 128, 256, 512, 512), (4, 9, 16, 23, 30)),
    }[net]
    state = published.load_tensors(
        (published.LPIPS_ALEX if net == "alex" else published.LPIPS_VGG).find()
    )
    assert {k: tuple(v.shape) for k, v in state.items()} == {
        f"lin{i}.model.1.weight": (1, c, 1, 1) for i, c in enumerate(channels)
    }
    assert tuple(tap + 1 for tap in lpips._TAPS[net]) == ends
    with torch.device("meta"):
        layers = (lpips.alexnet if net == "alex" else lpips.vgg16)()
    assert all(isinstance(layers[tap], nn.ReLU) for tap in lpips._TAPS[net])


def random_network(build) -> nn.Module:
    """Weights under which signals neither die nor explode."""
    torch.manual_seed(2)
    with torch.device("meta"):
        network = build()
    state = {}
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
        if name.endswith("running_var"):
            state[name] = 0.5 + torch.rand(tensor.shape)
        elif tensor.ndim > 1:
            state[name] = torch.randn(tensor.shape) * (2 / fan_in) ** 0.5
        else:
            scale = name.endswith(("bn.weight", "1.weight", "2.weight", "3.weight"))
            state[name] = 0.1 * torch.randn(tensor.shape) + (1.0 if scale else 0.0)
    published.fill(network, state, published.I3D, "it")
    return network


def close(found, expected):
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * scale)
    assert expected.std() > 1e-3 * scale > 0


class TestI3D:
    def test_equals_a_plain_forward(self):
        network = random_network(i3d.I3DNetwork)
        state = network.state_dict()

        def same(x, k, s, value=0.0):
            for axis, (kernel, stride) in enumerate(zip(k, s, strict=True), 2):
                size = x.shape[axis]
                rest = size % stride
                total = max(kernel - (stride if rest == 0 else rest), 0)
                shape = list(x.shape)
                shape[axis] = total // 2
                front = torch.full(shape, value)
                shape[axis] = total - total // 2
                x = torch.cat([front, x, torch.full(shape, value)], axis)
            return x

        def unit(x, name, stride=1):
            weight = state[f"{name}.conv3d.weight"]
            x = F.conv3d(same(x, weight.shape[2:], (stride,) * 3), weight, stride=stride)
            names = ("running_mean", "running_var", "weight", "bias")
            mean, var, gain, bias = (state[f"{name}.bn.{k}"].view(1, -1, 1, 1, 1) for k in names)
            return ((x - mean) / (var + 1e-3).sqrt() * gain + bias).clamp(min=0)

        def pool(x, k, s):
            return F.max_pool3d(same(x, k, s, -torch.inf), k, s)

        video = torch.rand(1, 3, 9, 37, 70) * 2 - 1
        x = pool(unit(video, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
        x = unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3")
        x = pool(x, (1, 3, 3), (1, 2, 2))
        for name in ("3b", "3c", None, "4b", "4c", "4d", "4e", "4f", "two", "5b", "5c"):
            if name is None:
                x = pool(x, (3, 3, 3), (2, 2, 2))
            elif name == "two":
                x = pool(x, (2, 2, 2), (2, 2, 2))
            else:
                m = f"Mixed_{name}."
                parts = [
                    unit(x, m + "b0"),
                    unit(unit(x, m + "b1a"), m + "b1b"),
                    unit(unit(x, m + "b2a"), m + "b2b"),
                    unit(pool(x, (3, 3, 3), (1, 1, 1)), m + "b3b"),
                ]
                x = torch.cat(parts, 1)
        with torch.no_grad():
            close(network.trunk(video), x)

    def test_logits_average_over_space_and_time(self, monkeypatch):
        network = random_network(i3d.I3DNetwork)
        x = torch.rand(2, 1024, 3, 7, 7)
        monkeypatch.setattr(network, "trunk", lambda video: x)
        steps = [x[:, :, t : t + 2].mean((2, 3, 4)) for t in range(2)]
        weight = network.logits.conv3d.weight.view(400, 1024)
        expected = sum(s @ weight.T + network.logits.conv3d.bias for s in steps) / 2
        close(network(torch.zeros(1)), expected)


def test_inception_equals_a_plain_forward():
    network = random_network(inception.InceptionNetwork)
    state = network.state_dict()

    def conv(x, name, stride=1, padding=0):
        weight = state[f"{name}.conv.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=padding)
        return F.relu(
            F.batch_norm(
                x, state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"],
                state[f"{name}.bn.weight"], state[f"{name}.bn.bias"], eps=1e-3,
            )
        )  # fmt: skip

    def mean9(x):
        ones = torch.ones_like(x[:1, :1])
        kernel = torch.ones(1, 1, 3, 3)
        total = F.conv2d(x.flatten(0, 1)[:, None], kernel, padding=1).view(x.shape)
        return total / F.conv2d(ones, kernel, padding=1)

    images = torch.rand(2, 3, 107, 90) * 2 - 1
    x = conv(conv(images, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3")
    x = F.max_pool2d(conv(x, "Conv2d_2b_3x3", padding=1), 3, 2)
    x = F.max_pool2d(conv(conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, 2)
    for n in ("5b", "5c", "5d"):
        m = f"Mixed_{n}.branch"
        b = conv(conv(x, m + "5x5_1"), m + "5x5_2", padding=2)
        c = conv(x, m + "3x3dbl_1")
        c = conv(conv(c, m + "3x3dbl_2", padding=1), m + "3x3dbl_3", padding=1)
        x = torch.cat([conv(x, m + "1x1"), b, c, conv(mean9(x), m + "_pool")], 1)
    m = "Mixed_6a.branch"
    b = conv(conv(conv(x, m + "3x3dbl_1"), m + "3x3dbl_2", padding=1), m + "3x3dbl_3", 2)
    x = torch.cat([conv(x, m + "3x3", 2), b, F.max_pool2d(x, 3, 2)], 1)
    wide, tall = (0, 3), (3, 0)
    for n in ("6b", "6c", "6d", "6e"):
        m = f"Mixed_{n}.branch"
        b = conv(conv(conv(x, m + "7x7_1"), m + "7x7_2", 1, wide), m + "7x7_3", 1, tall)
        c = conv(conv(x, m + "7x7dbl_1"), m + "7x7dbl_2", 1, tall)
        c = conv(conv(c, m + "7x7dbl_3", 1, wide), m + "7x7dbl_4", 1, tall)
        c = conv(c, m + "7x7dbl_5", 1, wide)
        x = torch.cat([conv(x, m + "1x1"), b, c, conv(mean9(x), m + "_pool")], 1)
    m = "Mixed_7a.branch"
    b = conv(conv(conv(x, m + "7x7x3_1"), m + "7x7x3_2", 1, wide), m + "7x7x3_3", 1, tall)
    b = conv(b, m + "7x7x3_4", 2)
    x = torch.cat([conv(conv(x, m + "3x3_1"), m + "3x3_2", 2), b, F.max_pool2d(x, 3, 2)], 1)
    for n in ("7b", "7c"):
        m = f"Mixed_{n}.branch"
        b = conv(x, m + "3x3_1")
        c = conv(conv(x, m + "3x3dbl_1"), m + "3x3dbl_2", padding=1)
        sides = [(1, (0, 1)), (1, (1, 0))]
        b = [conv(b, m + f"3x3_2{s}", 1, p) for s, (_, p) in zip("ab", sides, strict=True)]
        c = [conv(c, m + f"3x3dbl_3{s}", 1, p) for s, (_, p) in zip("ab", sides, strict=True)]
        pooled = mean9(x) if n == "7b" else F.max_pool2d(x, 3, 1, 1)
        x = torch.cat([conv(x, m + "1x1"), *b, *c, conv(pooled, m + "_pool")], 1)
    with torch.no_grad():
        close(network(images), x.mean((2, 3)))


def test_resnext_equals_a_plain_forward():
    network = random_network(resnext3d.ResNeXt101)
    state = network.state_dict()

    def norm(x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{k}"] for k in names))

    video = 50 * torch.randn(1, 3, 5, 20, 32)
    x = F.relu(norm(F.conv3d(video, state["conv1.weight"], None, (1, 2, 2), 3), "bn1"))
    x = F.max_pool3d(x, 3, 2, 1)
    for index, blocks in enumerate((3, 4, 23, 3), 1):
        for block in range(blocks):
            name, stride = f"layer{index}.{block}", 2 if block == 0 and index > 1 else 1
            y = F.relu(norm(F.conv3d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1"))
            weight = state[f"{name}.conv2.weight"].chunk(32)
            y = torch.cat(
                [
                    F.conv3d(part, w, stride=stride, padding=1)
                    for part, w in zip(y.chunk(32, 1), weight, strict=True)
                ],
                1,
            )
            y = F.conv3d(F.relu(norm(y, f"{name}.bn2")), state[f"{name}.conv3.weight"])
            y = norm(y, f"{name}.bn3")
            if block == 0:
                x = F.conv3d(x, state[f"{name}.downsample.0.weight"], stride=stride)
                x = norm(x, f"{name}.downsample.1")
            x = F.relu(x + y)
    with torch.no_grad():
        close(network(video), x.mean((2, 3, 4)))


def write(state, path, monkeypatch, module, name) -> Published:
    """Save tensors as if they were the published file."""
    torch.save(state, path)
    data = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    digest = hashlib.sha256(data).hexdigest()
    entry = getattr(module, name)
    entry = replace(entry, file=path.name, size=len(data), sha256=digest, blob=blob)
    monkeypatch.setattr(module, name, entry)
    monkeypatch.setenv("LMDVID_WEIGHTS", str(path.parent))
    return entry


class TestLPIPS:
    @pytest.fixture(params=["alex", "vgg"])
    def net(self, request, tmp_path, monkeypatch):
        build = lpips.alexnet if request.param == "alex" else lpips.vgg16
        state = {f"features.{k}": v for k, v in random_network(build).state_dict().items()}
        name = "ALEXNET" if request.param == "alex" else "VGG16"
        write(state, tmp_path / "net.pth", monkeypatch, lpips, name)
        return lpips.LPIPS(request.param), state

    def test_equals_a_plain_computation(self, net):
        network, state = net
        a, b = (torch.rand(2, 3, 40, 33) * 2 - 1 for _ in range(2))
        heads = torch.load(
            (published.LPIPS_ALEX if network.net == "alex" else published.LPIPS_VGG).find(),
            weights_only=True, map_location="cpu",
        )  # fmt: skip
        expected = torch.zeros(2)
        if network.net == "alex":
            convolutions = [(0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)]
            pooled, tapped = {3: (3, 2), 6: (3, 2)}, (0, 3, 6, 8, 10)
        else:
            indices = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
            convolutions = [(i, 1, 1) for i in indices]
            pooled, tapped = {i: (2, 2) for i in (5, 10, 17, 24)}, (2, 7, 14, 21, 28)
        x = torch.stack(
            [
                (torch.cat([a, b])[:, c] - shift) / scale
                for c, (shift, scale) in enumerate(
                    [(-0.03, 0.458), (-0.088, 0.448), (-0.188, 0.45)]
                )
            ],
            1,
        )
        for index, stride, padding in convolutions:
            if index in pooled:
                x = F.max_pool2d(x, *pooled[index])
            weight, bias = (state[f"features.{index}.{k}"] for k in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, stride, padding).clamp(min=0)
            if index in tapped:
                y = F.normalize(x, dim=1, eps=1e-10)
                head = heads[f"lin{tapped.index(index)}.model.1.weight"]
                expected += F.conv2d((y[:2] - y[2:]) ** 2, head).mean((1, 2, 3))
        torch.testing.assert_close(network(a, b), expected, rtol=1e-4, atol=1e-6)
        assert (network(a, a) == 0).all()
        assert (expected > 0.001).all()

    def test_refuses(self, net):
        with pytest.raises(ValueError, match=r"at least \d+ px, not \(1, 3, 8, 8\)"):
            net[0](torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
        with pytest.raises(ValueError, match='"vgg19"; possible are "alex" and "vgg"'):
            lpips.LPIPS("vgg19")  # pyright: ignore[reportArgumentType]


class TestWrappers:
    """From a file on disk to vectors: sizes, ranges, precision."""

    def test_i3d_squashes_and_counts_frames(self, tmp_path, monkeypatch):
        state = random_network(i3d.I3DNetwork).state_dict()
        entry = write(state, tmp_path / "i3d.pt", monkeypatch, i3d, "I3D")
        clips = i3d.I3DClips()
        assert clips.digest == entry.sha256
        seen = []
        network = nn.Module()
        network.forward = lambda x: (seen.append(x), torch.zeros(1, 400))[1]
        clips.network = network
        video = torch.rand(2, 9, 3, 16, 24) * 2 - 1
        assert clips(video).shape == (2, 400)
        assert [tuple(x.shape) for x in seen] == [(1, 3, 9, 224, 224)] * 2
        expected = F.interpolate(video[1], (224, 224), mode="bilinear", align_corners=False)
        torch.testing.assert_close(seen[1][0].transpose(0, 1), expected)
        with pytest.raises(ValueError, match="have 8 frames; 9 or more"):
            clips(video[:, :8])
        with pytest.raises(ValueError, match=r"lie in \[.*\]; they must be RGB in \[-1, 1\]"):
            clips(video * 127.5 + 127.5)

    def test_resnext_takes_pixels_less_their_mean(self, tmp_path, monkeypatch):
        state = random_network(resnext3d.ResNeXt101).state_dict()
        state = {f"module.{k}": v for k, v in state.items()}
        checkpoint = {"arch": "resnext-101", "state_dict": state}
        write(checkpoint, tmp_path / "r.pth", monkeypatch, resnext3d, "RESNEXT101")
        clips = resnext3d.ResNeXtClips()
        pixels = torch.randint(0, 256, (1, 2, 3, 112, 112))
        mean = torch.tensor([114.7748, 107.7354, 99.4750]).view(3, 1, 1)
        expected = clips.network((pixels - mean).transpose(1, 2))
        torch.testing.assert_close(clips(pixels / 127.5 - 1), expected, rtol=1e-4, atol=1e-3)
        network, clips.network = clips.network, nn.Identity()
        grey = clips(torch.full((1, 2, 3, 200, 64), 17 / 127.5 - 1))
        torch.testing.assert_close(grey, (17 - mean).expand(2, 3, 112, 112).transpose(0, 1)[None])
        assert not network.training

    def test_inception_embeds_every_frame(self, tmp_path, monkeypatch):
        state = random_network(inception.InceptionNetwork).state_dict()
        write(state, tmp_path / "i.pth", monkeypatch, inception, "INCEPTION")
        frames = inception.InceptionFrames()
        images = torch.rand(1, 2, 3, 299, 299) * 2 - 1
        expected = frames.network(images[0])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = nn.ModuleList([frames]).to(torch.bfloat16)[0](images)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert frames.state_dict() == {}
        parent = nn.ModuleDict({"frames": frames, "net": nn.Linear(1, 1)})
        assert set(parent.state_dict()) == {"net.weight", "net.bias"}
        parent.load_state_dict(parent.state_dict())
        assert torch.equal(frames.network.state_dict()["fc.bias"], state["fc.bias"])
        with pytest.raises(WeightsError, match=r"is not the Inception v3 of FID: Missing"):
            published.fill(inception.InceptionNetwork(), {}, inception.INCEPTION,
                           "the Inception v3 of FID")  # fmt: skip

    def test_torchscript_runs_as_it_is(self, tmp_path, monkeypatch):
        class Fake(nn.Module):
            def forward(self, x, rescale: bool, resize: bool, return_features: bool):
                assert rescale
                assert resize
                assert return_features
                return x.mean((2, 3, 4)) @ torch.ones(3, 400)

        import warnings

        path = tmp_path / "i3d.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(Fake()).save(str(path))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entry = replace(i3d.I3D_TORCHSCRIPT, sha256=digest, size=path.stat().st_size)
        monkeypatch.setattr(i3d, "I3D_TORCHSCRIPT", entry)
        clips = i3d.TorchScriptI3D(path)
        found = clips(torch.full((2, 9, 3, 4, 4), 1.0))
        torch.testing.assert_close(found, torch.full((2, 400), 3 * 255.0))

    def test_plain_networks_can_be_pickled(self):
        with torch.device("meta"):
            network = i3d.I3DNetwork()
        assert len(pickle.loads(pickle.dumps(network)).state_dict()) == len(i3d_layout())

    def test_base_of_measures_turns_tf32_off_and_on_again(self):
        class Probe(frozen.VideoFeatures):
            def embed(self, video):
                seen.append(torch.backends.cuda.matmul.fp32_precision)
                seen.append(torch.is_grad_enabled())
                return video.mean((1, 2, 3, 4))[:, None]

        seen = []
        before = torch.backends.cuda.matmul.fp32_precision
        video = torch.zeros(1, 1, 3, 2, 2, dtype=torch.float16, requires_grad=True)
        assert Probe()(video).dtype == torch.float32
        assert seen == ["ieee", False]
        assert torch.backends.cuda.matmul.fp32_precision == before


class TestPublishedFiles:
    @pytest.mark.parametrize("change", [{"size": 3}, {"sha256": "00"}, {"blob": "0" * 40}])
    def test_another_file_is_refused(self, tmp_path, monkeypatch, change):
        entry = write({"a": torch.zeros(2)}, tmp_path / "a.pt", monkeypatch, i3d, "I3D")
        assert entry.check(tmp_path / "a.pt") == entry.sha256
        with pytest.raises(
            WeightsError, match=r"a\.pt is not the published file: (its|it has|Git)"
        ):
            replace(entry, **change).check(tmp_path / "a.pt")

    def test_a_missing_file_says_where_to_get_it(self, tmp_path, monkeypatch):
        monkeypatch.delenv("LMDVID_WEIGHTS", raising=False)
        for build in (i3d.I3DClips, i3d.TorchScriptI3D, inception.InceptionFrames,
                      resnext3d.ResNeXtClips, lpips.LPIPS):  # fmt: skip
            with pytest.raises(WeightsError, match=r"LMDVID_WEIGHTS not set\. Get it from https"):
                build()
        with pytest.raises(WeightsError, match=r"nowhere\.pt does not exist"):
            i3d.I3DClips(tmp_path / "nowhere.pt")

    def test_a_folder_may_lack_what_a_package_holds(self, tmp_path):
        entry = published.LPIPS_ALEX
        assert entry.find(tmp_path) == entry.find()
        (tmp_path / entry.file).write_bytes(b"another")
        assert entry.find(tmp_path) == tmp_path / entry.file
        with pytest.raises(WeightsError, match=r"nothing\.pth does not exist"):
            entry.find(tmp_path / "nothing.pth")

    def test_packaged_files_are_as_published(self):
        for entry in published.PUBLISHED:
            if entry.package:
                assert len(entry.check(entry.find())) == 64
