"""MRAA's networks against the original's outputs, by every door."""

import pytest
import torch
from test_fomm import count, enlarged, original, thinned, values
from test_lia import assert_code, assert_image

from lmdvid.animate import Animator
from lmdvid.networks import WeightsError, mraa
from lmdvid.networks.keypoints import Keypoints
from lmdvid.pretrained import convert, load_network


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> tuple[mraa.Generator, str]:
    """Through `lmdvid convert`, with everything that a training file holds."""
    folder = tmp_path_factory.mktemp("mraa")
    content = {
        **original("mraa"),
        "optimizer_avd": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{}]},
        "epoch_avd": 29,
    }
    torch.save(content, folder / "taichi.pth")
    with pytest.raises(WeightsError, match="--preset mraa-vox256 or mraa-taichi256"):
        convert(folder / "taichi.pth", folder / "mraa")
    report = convert(folder / "taichi.pth", folder / "mraa", preset="mraa-taichi256")
    return load_network(folder / "mraa"), report  # pyright: ignore[reportReturnType]


def test_the_report_lists_what_is_left_out(converted):
    _, report = converted
    assert "the authors' MRAA generator" in report
    assert "68,295,177 parameters" in report
    assert "1 x entry of 'optimizer_avd'" in report
    assert "2 x fixed filter" in report


@pytest.mark.parametrize("regions", [10, 20])
def test_parameter_counts(regions):
    with torch.device("meta"):
        network = mraa.Generator(regions=regions)
    expected = {
        10: (14_146_728, 45_575_391, 6_282_438, 2_290_620),
        20: (14_163_888, 45_717_521, 6_282_438, 2_336_760),
    }
    parts = (network.regions,), (network.motion, network.painter), (network.behind,), (network.avd,)
    assert tuple(count(*part) for part in parts) == expected[regions]


@torch.no_grad()
def test_everything_equals_the_original(converted):
    network, _ = converted
    golden = values("mraa")
    image, driving = enlarged(golden["source_16"]), enlarged(golden["driving_16"])
    source, codes = network.encode_source(image), network.encode_motion(driving)
    for regions, name in ((source.codes, "source"), (codes, "driving")):
        position, axes = Keypoints.of(regions)
        assert_code(position, golden[f"shift_{name}"])
        assert_code(axes, golden[f"affine_{name}"])
    axes = Keypoints.of(source.codes).shape
    assert_code(axes @ axes.mT, golden["covar_source"])
    background = network.background(source, driving[1:2])
    assert_code(background, golden["bg_matrix"])
    made = network.render(source, codes[1:2], None, "absolute", background=background)
    assert_image(thinned(made), golden["standard_with_bg"])

    own = Keypoints.of(source.expand(3).codes)
    made = network.avd(own, Keypoints.of(codes))
    assert_code(made.position, golden["avd_shift"])
    assert_code(made.shape, golden["avd_affine"])
    # The stand-in network makes regions three hundred times as long as wide, whose inverse
    # covariances magnify rounding: the picture is compared from the original's own regions.
    regions = Keypoints(golden["avd_shift"], golden["avd_affine"])
    first = Keypoints(*(part[:1] for part in regions))
    assert_image(thinned(network.paint(source, first, first)), golden["avd"][:1])
    animator = Animator(network, dtype=torch.float32)
    assert_image(thinned(animator.animate(image[0], driving, "absolute")), golden["standard"])
    difference = (thinned(animator.animate(image[0], driving[2:], "avd")) - golden["avd"][2:]).abs()
    assert difference.mean() < 5e-4


def test_files_of_the_authors_choose_their_preset():
    assert set(mraa.RELEASED.values()) <= mraa.PRESETS.keys()
    assert all(len(digest) == 64 for digest in mraa.RELEASED)


def test_a_network_without_avd_has_no_such_mode():
    network = mraa.Generator(64, 3, 0.06, 2, 3, avd=False, background="none").eval()
    source = network.encode_source(torch.rand(1, 3, 64, 64))
    codes = network.encode_motion(torch.rand(2, 3, 64, 64))
    assert network.background(source, torch.rand(2, 3, 64, 64)) is None
    with pytest.raises(ValueError, match="'relative' or 'adaptive' or 'absolute'"):
        network.render(source, codes, None, "avd")
    with pytest.raises(ValueError, match="needs the codes of the first driving frame"):
        network.render(source, codes, None, "adaptive")
