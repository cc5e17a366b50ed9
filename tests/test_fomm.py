"""FOMM's networks against the original's outputs, by every door."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_lia import assert_code, assert_image

from lmdvid.animate import Animator
from lmdvid.networks import WeightsError, fomm
from lmdvid.networks.keypoints import Keypoints
from lmdvid.ops.warp import warp
from lmdvid.pretrained import convert, load_network

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
import recipe  # noqa: E402


@cache
def original(system: str) -> dict[str, dict[str, torch.Tensor]]:
    """The original's stand-in weights, network by network, in the original's names."""
    made = recipe.weights(GOLDEN / f"{system}_256.keys.json")
    return {n: {k: torch.from_numpy(np.array(v)) for k, v in d.items()} for n, d in made.items()}


@cache
def values(system: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{system}_256.npz") as data:
        return {k: torch.from_numpy(data[k]) for k in data.files}


def enlarged(images: torch.Tensor) -> torch.Tensor:
    """Inputs in our range."""
    return 2 * F.interpolate(images, size=(256, 256), mode="bilinear", align_corners=True) - 1


def thinned(images: torch.Tensor) -> torch.Tensor:
    """Outputs as they are kept: in [0, 1], every fourth pixel."""
    return ((images + 1) / 2)[..., ::4, ::4]


def count(*networks: torch.nn.Module) -> int:
    return sum(p.numel() for network in networks for p in network.parameters())


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> tuple[fomm.Generator, str]:
    """Through `lmdvid convert`, with everything that a training file holds."""
    folder = tmp_path_factory.mktemp("fomm")
    content = {
        name: {f"module.{key}": value for key, value in state.items()}
        for name, state in original("fomm").items()
    }
    content |= {
        "optimizer_generator": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{}]},
        "epoch": 99,
    }
    torch.save(content, folder / "vox-cpk.pth.tar")
    report = convert(folder / "vox-cpk.pth.tar", folder / "fomm")
    return load_network(folder / "fomm"), report  # pyright: ignore[reportReturnType]


def test_the_report_lists_what_is_left_out(converted):
    _, report = converted
    assert "the authors' FOMM generator" in report
    assert "59,790,759 parameters" in report
    assert "26 x entry of 'discriminator'" in report
    assert "1 x entry of 'optimizer_generator'" in report
    assert "2 x fixed filter" in report


def test_parameter_counts(converted):
    network, _ = converted
    assert count(network.detector) == 14_215_368
    assert count(network.motion) == 37_730_268
    assert count(network.motion, network.painter) == 45_575_391
    assert count(fomm.PatchDiscriminator()) == 2_758_849
    assert count(fomm.PatchDiscriminator(13)) == 2_769_089


@torch.no_grad()
def test_everything_equals_the_original(converted):
    network, _ = converted
    golden = values("fomm")
    source = network.encode_source(enlarged(golden["source_16"]))
    codes = network.encode_motion(enlarged(golden["driving_16"]))
    for keypoints, name in ((source.codes, "source"), (codes, "driving")):
        position, jacobian = Keypoints.of(keypoints)
        assert_code(position, golden[f"kp_{name}"])
        assert_code(jacobian, golden[f"jacobian_{name}"])
    flow, occlusion = network.flow(source.expand(3), Keypoints.of(codes))
    assert_image(occlusion, golden["occlusion"])
    flow = F.interpolate(flow, size=(256, 256), mode="bilinear", align_corners=False)
    deformed = warp(source.image.expand(3, -1, -1, -1), flow, align_corners=False)
    assert_image(deformed[..., ::4, ::4], golden["deformed"])
    animator = Animator(network, dtype=torch.float32)
    image, driving = enlarged(golden["source_16"])[0], enlarged(golden["driving_16"])
    for mode in ("absolute", "relative"):
        assert_image(thinned(animator.animate(image, driving, mode)), golden[mode])


def test_the_discriminator_equals_the_original():
    network = fomm.PatchDiscriminator().eval()
    ours = {}
    for key, value in original("fomm")["discriminator"].items():
        name = key.removeprefix("discs.1.").replace("down_blocks.", "convs.")
        if ".norm." in name:
            _, block, _, leaf = name.split(".")
            ours[f"norms.{int(block) - 1}.{leaf}"] = value
            continue
        head, leaf = name.replace(".conv.", ".").rsplit(".", 1)
        head = "score" if head == "conv" else head
        spectral = {"weight_orig": "original", "weight_u": "0._u", "weight_v": "0._v"}
        ours[
            f"{head}.parametrizations.weight.{spectral[leaf]}"
            if leaf in spectral
            else f"{head}.{leaf}"
        ] = value
    network.load_state_dict(ours)
    with torch.no_grad():
        scores, features = network(enlarged(values("fomm")["source_16"]))
    assert_code(scores, values("fomm")["discriminator"])
    assert [tuple(f.shape[1:]) for f in features] == [
        (64, 126, 126),
        (128, 61, 61),
        (256, 29, 29),
        (512, 26, 26),
    ]


def test_configurations_are_read_off_shapes():
    small = fomm.Generator(
        128, keypoints=5, width=0.125, shrink=2, single_jacobian=True, align_corners=False
    )
    theirs = {}
    for key, value in small.state_dict().items():
        head, rest = key.split(".", 1)
        if head == "detector":
            for our, name in (
                ("hourglass", "predictor"),
                ("heatmaps", "kp"),
                ("jacobians", "jacobian"),
            ):
                rest = rest.replace(our, name) if rest.startswith(our) else rest
            head = "kp_detector"
        else:
            head = "generator.dense_motion_network" if head == "motion" else "generator"
        rest = rest.replace("encoder.", "encoder.down_blocks.")
        rest = rest.replace("decoder.", "decoder.up_blocks.").replace("bottleneck.", "bottleneck.r")
        if rest.startswith(("down.", "up.")):
            rest = rest.replace("down.", "down_blocks.").replace("up.", "up_blocks.")
        theirs[f"{head}.{rest}"] = value
    theirs["kp_detector.down.weight"] = torch.zeros(3, 1, 5, 5)
    old = {k: v for k, v in theirs.items() if "num_batches_tracked" not in k}
    for state in (theirs, old):
        config, converted, rest = fomm.from_original(state)
        assert config.items() <= small.config.items()
        assert converted.keys() == small.state_dict().keys()
        assert rest == ["kp_detector.down.weight"]
    with pytest.raises(ValueError, match=r"unknown or misshapen \['detector.extra"):
        fomm.from_original({**theirs, "kp_detector.extra": torch.zeros(1)})
    del theirs["generator.final.bias"]
    with pytest.raises(ValueError, match=r"missing.*painter.final.bias"):
        fomm.from_original(theirs)


def test_unknown_presets_are_refused(tmp_path):
    content = {
        "generator": {"dense_motion_network.mask.weight": torch.zeros(2)},
        "kp_detector": {"kp.weight": torch.zeros(2)},
    }
    torch.save(content, tmp_path / "x.pth.tar")
    with pytest.raises(
        WeightsError, match="no preset 'vox' for fomm, which has fomm, fomm-corners"
    ):
        convert(tmp_path / "x.pth.tar", tmp_path / "out", preset="vox")
