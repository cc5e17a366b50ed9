"""What directions do: flow that is known, generators that are known, rotations, reports."""

import copy
import importlib.util
import json
import re
import sys
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lmdvid import cli
from lmdvid.directions import read_directions
from lmdvid.interpret import InterpretationError, plots
from lmdvid.interpret.flow import (
    motion_by_angle,
    motion_by_place,
    opposition,
    optical_flow,
    read_flow,
    rose,
)
from lmdvid.interpret.ground_truth import (
    dci,
    distinct,
    r2_matrix,
    same_pose_difference,
    supervised_rotation,
    varimax,
    within_identity_share,
)
from lmdvid.interpret.measure import (
    Observed,
    activated,
    compare_with_truth,
    observe,
    picture_jacobian,
    psnr,
)
from lmdvid.interpret.statistics import magnitude_statistics
from lmdvid.interpret.study import Settings, study
from lmdvid.manipulate import Manipulator
from lmdvid.navigator import LatentNavigator
from lmdvid.networks.inmodegan import Generator as InMoDeGAN
from lmdvid.networks.lia import Generator
from lmdvid.pretrained import load_network, save_network

# Flow


def texture(size: int) -> np.ndarray:
    """Smooth noise, float (size, size, 3) in [0, 255]."""
    noise = np.random.default_rng(0).random((size, size, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0)
    return 255 * (smooth - smooth.min()) / (smooth.max() - smooth.min())


def warped(matrix: np.ndarray, size: int = 128) -> np.ndarray:
    """Two frames, the second one moved by a 2x3 matrix about the centre."""
    large = texture(2 * size)
    centre = size - 0.5
    matrix = matrix.astype(np.float64).copy()
    matrix[:, 2] += centre - matrix[:, :2] @ (centre, centre)
    moved = cv2.warpAffine(large, matrix, (2 * size, 2 * size), flags=cv2.INTER_CUBIC)
    inner = slice(size // 2, size // 2 + size)
    return np.stack([f[inner, inner] for f in (large, moved)]).clip(0, 255).astype(np.uint8)


def field(size: int, matrix: np.ndarray) -> np.ndarray:
    """The exact flow (1, size, size, 2) of that motion."""
    middle = (size - 1) / 2
    y, x = np.mgrid[:size, :size] - middle
    moved = np.stack([x, y], axis=-1) @ matrix[:, :2].T + matrix[:, 2]
    return (moved - np.stack([x, y], axis=-1))[None]


RIGHT = np.array([[1.0, 0, 2], [0, 1, 0]])


def test_a_texture_that_moves_right_by_two_pixels():
    exact = motion_by_angle(field(128, RIGHT))
    np.testing.assert_allclose(exact.phi, [2 / 128, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(exact.share, [1, 0, 0, 0], atol=1e-12)
    assert exact.counts.tolist() == [128 * 128, 0, 0, 0]
    estimated = motion_by_angle(optical_flow(warped(RIGHT)))
    np.testing.assert_allclose(estimated.phi, exact.phi, rtol=0.02, atol=0)
    # Vectors are in pixels of the frames, also of those that were enlarged.
    small = motion_by_angle(optical_flow(warped(RIGHT, 64)))
    np.testing.assert_allclose(small.phi[0], 2 / 64, rtol=0.02)


# Mean distance of a square's points from its centre is 0.3826 of its side.
MEAN_DISTANCE = (np.sqrt(2) + np.arcsinh(1)) / 6
TURN = 0.05
ROTATION = np.array([[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0]])
ZOOM = np.array([[1.05, 0, 0], [0, 1.05, 0]])


@pytest.mark.parametrize(
    ("matrix", "speed"), [(ROTATION, 2 * np.sin(TURN / 2)), (ZOOM, 0.05)], ids=["rotation", "zoom"]
)
def test_rotation_and_zoom_move_every_way_alike(matrix, speed):
    """A point at distance r moves by r 2 sin(angle / 2), or by r (zoom - 1)."""
    exact = motion_by_angle(field(128, matrix), threshold=0)
    np.testing.assert_allclose(exact.phi, 4 * [MEAN_DISTANCE * speed], rtol=0.005)
    np.testing.assert_allclose(exact.share, 4 * [0.25], rtol=0.03)
    # Short vectors near the centre are left out, so that the mean of the others is larger.
    some = motion_by_angle(field(128, matrix))
    estimated = motion_by_angle(optical_flow(warped(matrix)))
    np.testing.assert_allclose(estimated.phi, some.phi, rtol=0.03)


def test_the_sign_swaps_the_sectors():
    there = motion_by_angle(field(32, RIGHT))
    back = motion_by_angle(-field(32, RIGHT))
    assert back.share.tolist() == [0, 0, 1, 0]
    assert opposition(there, back) == 1
    assert opposition(there, there) == 0
    assert opposition(there, motion_by_angle(np.zeros((1, 4, 4, 2)))) is None
    down = motion_by_angle(field(32, np.array([[1.0, 0, 0], [0, 1, 3]])))
    assert down.share.tolist() == [0, 0, 0, 1]


def test_sectors_quadrants_and_the_threshold():
    flow = np.zeros((1, 1, 6, 2))
    flow[0, 0, :, 0] = [1, 1, -1, -1, 0.05, 2]  # u
    flow[0, 0, :, 1] = [-0.5, -2, -0.5, 2, 0, 0]  # v, downwards
    axes = motion_by_angle(flow)
    assert axes.counts.tolist() == [2, 1, 1, 1]
    np.testing.assert_allclose(axes.phi, [(1.25**0.5 + 2) / 2, 5**0.5, 1.25**0.5, 5**0.5])
    assert motion_by_angle(flow, regions="quadrants").counts.tolist() == [3, 1, 1, 0]
    assert motion_by_angle(flow, threshold=0.01).counts.sum() == 6
    petals = rose(flow, bins=4)
    np.testing.assert_allclose(petals, axes.share)
    masks = np.zeros((2, 1, 6), bool)
    masks[0, 0, :2] = masks[1, 0, 4:] = True
    places = motion_by_place(flow, masks)
    np.testing.assert_allclose(places.phi, [(1.25**0.5 + 5**0.5) / 2, 2])
    assert places.counts.tolist() == [2, 1]


def test_flow_of_another_program_is_read(tmp_path):
    flow = np.random.default_rng(0).random((2, 3, 4, 4, 2))
    np.savez(tmp_path / "000.npz", positive=flow, negative=-flow)
    there, back = read_flow(tmp_path / "000.npz", (2, 4, 4, 4, 3))
    assert (there == -back).all()
    with pytest.raises(InterpretationError, match="the sweeps' is"):
        read_flow(tmp_path / "000.npz", (2, 5, 4, 4, 3))
    with pytest.raises(InterpretationError, match="no npz file"):
        read_flow(tmp_path / "001.npz", (2, 4, 4, 4, 3))


# Statistics


def test_magnitudes_of_a_walk_on_two_axes():
    steps = np.arange(8.0)
    clip = np.stack([steps, -2 * steps, np.zeros(8), np.tile([1.0, -1], 4)], axis=1)
    found = magnitude_statistics([clip, clip[:4]])
    np.testing.assert_allclose(found.correlation[0, 1], -1)
    assert found.correlation[2].tolist() == [0, 0, 0, 0]
    assert found.activity.tolist() == [1, 2, 0, 2]
    assert found.activity_over_time.shape == (7, 4)
    values = np.linalg.svd(np.concatenate([clip, clip[:4]]) - found.mean)[1] ** 2 / 12
    np.testing.assert_allclose(found.spectrum, values, atol=1e-9)
    np.testing.assert_allclose(found.effective_dimension, values.sum() ** 2 / (values**2).sum())
    assert found.percentiles[0, 3] == np.median([*steps, *steps[:4]])
    equal = magnitude_statistics([np.eye(4) - 0.25])  # three axes of equal variance
    np.testing.assert_allclose(equal.effective_dimension, 3)
    assert equal.dimensions_90 == 3


# Ground truth


@pytest.fixture
def factors():
    return np.tanh(np.random.default_rng(0).standard_normal((600, 4)))


@pytest.fixture
def rotation():
    return np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0]


def spread_out(factors: np.ndarray) -> np.ndarray:
    """Magnitudes of six directions: four follow a factor each, two hardly move."""
    rest = 0.01 * np.random.default_rng(2).standard_normal((len(factors), 2))
    return np.concatenate([factors * [1.0, -2, 3, 4], rest], axis=1)


def scores(alpha: np.ndarray, factors: np.ndarray):
    return r2_matrix(alpha, factors), dci(alpha[:300], factors[:300], alpha[300:], factors[300:])


def test_known_directions_are_recovered_exactly(factors):
    r2, found = scores(spread_out(factors), factors)
    np.testing.assert_allclose(r2[:4].diagonal(), 1, atol=1e-12)
    assert r2[4:].max() < 0.03
    assert found.disentanglement == pytest.approx(1)
    assert found.completeness == pytest.approx(1)
    np.testing.assert_allclose(found.informativeness, 1, atol=1e-4)


def test_a_random_basis_is_not_disentangled_and_rotations_undo_it(factors, rotation):
    alpha = spread_out(factors) @ rotation
    r2, found = scores(alpha, factors)
    assert r2.max(0).mean() < 0.8
    assert found.disentanglement < 0.5
    assert found.completeness < 0.5
    np.testing.assert_allclose(found.informativeness, 1, atol=1e-3)  # the span has not changed

    supervised = supervised_rotation(alpha[:300], factors[:300])
    np.testing.assert_allclose(supervised.T @ supervised, np.eye(6), atol=1e-10)
    r2, found = scores(alpha @ supervised, factors)
    np.testing.assert_allclose(r2[:4].diagonal(), 1, atol=1e-3)
    assert found.disentanglement == pytest.approx(1)
    assert (np.corrcoef((alpha @ supervised)[:, 1], factors[:, 1])[0, 1]) > 0.99  # the sign, too

    # What each factor does along every direction is simple in one basis alone.
    loadings = np.linalg.lstsq(factors, alpha)[0]
    undone = np.abs(rotation @ varimax(loadings))[:4]
    np.testing.assert_allclose(np.sort(undone, axis=1)[:, -1], 1, atol=1e-4)


def test_more_factors_than_directions(factors):
    alpha = factors[:, 2:] @ np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0]
    found = supervised_rotation(alpha, factors)
    r2 = r2_matrix(alpha @ found, factors)
    np.testing.assert_allclose(r2[[0, 1], [2, 3]], 1, atol=1e-6)


def test_factors_that_say_nothing_new_are_merged():
    x = np.random.default_rng(0).standard_normal(50)
    values = np.stack([x, np.ones(50), -2 * x + 1, x**2], axis=1)
    found = distinct(values, ["left eye", "height", "right eye", "smile"])
    assert found.names == ["left eye + right eye", "smile"]
    assert found.columns == [0, 3]


def test_leakage_is_zero_or_one_where_it_should_be():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5000, 3))
    np.testing.assert_allclose(same_pose_difference(a, b, np.ones(3)), 1, atol=0.05)
    assert same_pose_difference(a, a, np.ones(3)).tolist() == [0, 0, 0]
    people = [np.full((7, 2), i) for i in range(4)]
    assert within_identity_share(people) == 0
    assert within_identity_share([a, a]) == 1


# A generator that is known: six grey patches, four of them moved by the pose, two the identity


@dataclass(frozen=True)
class Patches:
    appearance: Tensor
    codes: Tensor


class Known(nn.Module):
    """Latent axes 0 .. 3 are patches of the pose, 4 and 5 of the identity; d_i are rotated axes."""

    size = 32

    def __init__(self, rotation: np.ndarray | None = None) -> None:
        super().__init__()
        self.navigator = LatentNavigator(6, 4)
        self.navigator.weight.data = torch.eye(6)[:, :4]
        self.turned = torch.eye(4)
        self.config = {"size": 32, "dim": 6, "directions": 4}
        if rotation is not None:
            self.rotate_directions(torch.from_numpy(rotation))

    def paint(self, w: Tensor) -> Tensor:
        canvas = torch.zeros(len(w), 3, 32, 32)
        for i in range(6):
            y, x = 10 * (i // 2), 16 * (i % 2)
            canvas[:, :, y : y + 10, x : x + 16] = w[:, i, None, None, None] / 4
        return canvas

    def encode_source(self, image: Tensor) -> Patches:
        w = torch.stack(
            [4 * image[:, 0, 10 * (i // 2) + 5, 16 * (i % 2) + 8] for i in range(6)], dim=1
        )
        appearance = torch.cat([torch.zeros(len(w), 4), w[:, 4:]], dim=1)
        return Patches(appearance, w[:, :4] @ self.turned)

    def edit_source(self, source: Patches, delta: Tensor) -> Patches:
        return replace(source, appearance=source.appearance + self.navigator.displace(delta))

    def render(self, source: Patches, codes: Tensor, reference, mode) -> Tensor:
        return self.paint(self.navigator(source.appearance.expand(len(codes), -1), codes))

    def rotate_directions(self, rotation: Tensor) -> None:
        self.navigator = self.navigator.rotated(rotation)
        self.turned = self.turned @ rotation.float()


def clips(network: Known, count: int, seed: int) -> list[dict[str, Tensor]]:
    """Batches of one clip each, with the truth of each identity in the next one's poses."""
    random = torch.Generator().manual_seed(seed)
    pose = torch.randn(count, 40, 4, generator=random).tanh()
    identity = torch.randn(count, 1, 2, generator=random)
    other = pose.roll(-1, 0)

    def drawn(who: Tensor, pose: Tensor) -> Tensor:
        w = torch.cat([pose, who.expand(*pose.shape[:2], 2)], dim=-1)
        return network.paint(w.flatten(0, 1)).unflatten(0, pose.shape[:2])

    video, driving = drawn(identity, pose), drawn(identity.roll(-1, 0), other)
    truth = drawn(identity, other)
    names = ("video", "pose", "cross_driving", "cross_truth")
    rows = zip(video, pose, driving, truth, strict=True)
    return [{n: x[None] for n, x in zip(names, row, strict=True)} for row in rows]


def turned() -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(3).standard_normal((4, 4)))[0]


def seen(network: Known) -> tuple[Manipulator, Observed, Observed]:
    manipulator = Manipulator(network)
    fit, held = (observe(manipulator, clips(network, 6, seed), pictures=4) for seed in (0, 1))
    return manipulator, fit, held


def test_a_known_generator_is_known(rotation):
    names = ["a", "b", "c", "d"]
    manipulator, fit, held = seen(Known())
    found = compare_with_truth(fit, held, names, picture_jacobian(manipulator, held.pictures, 0.1))
    as_trained = found.scores["as trained"]
    np.testing.assert_allclose(as_trained.r2.diagonal(), 1, atol=1e-6)
    assert as_trained.dci.disentanglement == pytest.approx(1)
    assert as_trained.dci.completeness == pytest.approx(1)
    made, still = np.mean(held.transfer, axis=0)
    assert made > 90  # to rounding
    assert still < 30
    same = np.concatenate([a - b for a, b in held.same_pose])
    assert np.abs(same).max() < 1e-5  # identity changes no magnitude
    assert within_identity_share(held.appearance) < 1e-9

    manipulator, fit, held = seen(Known(turned()))
    jacobian = picture_jacobian(manipulator, held.pictures, 0.1)
    found = compare_with_truth(fit, held, names, jacobian)
    assert found.scores["as trained"].best < 0.9
    assert found.scores["as trained"].dci.disentanglement < 0.6
    for name in ("varimax", "supervised"):
        np.testing.assert_allclose(found.scores[name].best, 1, atol=1e-3)
        assert found.scores[name].dci.disentanglement > 0.999
    # Single pixels serve single directions: varimax on pictures undoes the rotation unsupervised.
    undone = np.abs(turned() @ found.rotations["varimax"])
    np.testing.assert_allclose(np.sort(undone, axis=1)[:, -1], 1, atol=1e-4)


def test_the_report_of_a_network_that_animates(tmp_path, monkeypatch):
    network = Known(turned())
    settings = Settings(
        sweeps=2,
        steps=2,
        pose_names=["mouth_open", "b", "c", "d"],
        rotate="supervised",
        save=tmp_path / "rotated",
        save_sweeps=tmp_path / "sweeps",
        places={"top": (0, 0, 1, 0.5)},
        measured_on="patches",
    )
    numbers = study(
        network,
        tmp_path / "net",
        tmp_path / "report",
        lambda split: clips(network, 4, seed=int(split == "held")),
        settings,
    )
    names = [entry["name"] for entry in numbers["directions"]]
    assert names == ["mouth open, R² 1.00", "b, R² 1.00", "c, R² 1.00", "d, R² 1.00"]
    stored = json.loads((tmp_path / "report" / "report.json").read_text())
    assert stored["ground_truth"]["as trained"]["best_r2"] < 0.9
    assert stored["ground_truth"]["supervised"]["dci"]["disentanglement"] > 0.99
    assert stored["leakage"]["identity_in_alpha"] < 1e-6
    # Beside the rotated weights, and only there: the others have other directions.
    found = read_directions(tmp_path / "rotated", network.navigator)
    assert found is not None
    assert [d.name for d in found.directions] == names
    assert not (tmp_path / "net").exists()
    assert (tmp_path / "rotated" / "model.safetensors").is_file()

    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("data:video/mp4;base64,") == 4
    assert "mouth open" in page
    loads = re.findall(r'(?:src|href)="([^"]{1,40})|url\(([^)]*)|@import', page)
    assert loads
    assert all(source.startswith("data:") for source, _ in loads)  # nothing from a network

    # The same study with flow of another program, which needs no OpenCV.
    here = importlib.util.find_spec
    monkeypatch.setattr(plots, "find_spec", lambda name: None if name == "cv2" else here(name))
    with pytest.raises(InterpretationError, match=r"needs cv2: pip install 'lmdvid\[interpret\]'"):
        study(network, tmp_path, tmp_path / "again", lambda _: [], Settings())
    monkeypatch.setitem(sys.modules, "cv2", None)
    (tmp_path / "flow").mkdir()
    for path in sorted((tmp_path / "sweeps").iterdir()):
        with np.load(path) as sweeps:
            shape = sweeps["positive"].shape
        flow = np.zeros((shape[0], shape[1] - 1, *shape[2:4], 2), np.float32)
        flow[..., 0] = 1.5
        np.savez(tmp_path / "flow" / path.name, positive=flow, negative=-flow)
    again = replace(settings, rotate=None, save=None, save_sweeps=None, read_flow=tmp_path / "flow")
    batches = clips(network, 3, seed=1)
    numbers = study(network, tmp_path, tmp_path / "again", lambda _: batches, again)
    first = numbers["directions"][0]
    assert first["positive"].phi.tolist() == [1.5 / 32, 0, 0, 0]
    assert first["opposition"] == 1
    np.testing.assert_allclose(first["places"]["top"]["share"], 0.5)
    assert read_directions(tmp_path, network.navigator) is not None


def test_the_report_of_a_generator_from_noise(tmp_path):
    torch.manual_seed(0)
    network = InMoDeGAN(32, 16, 4, 0.02, motion_init=3.0).eval().requires_grad_(False)
    settings = Settings(sweeps=3, frames=4, shown=2)
    numbers = study(network, tmp_path / "net", tmp_path / "report", None, settings)
    spread = np.array(numbers["std"])
    assert [e["index"] for e in numbers["directions"]] == np.argsort(-spread)[:2].tolist()
    assert sorted(numbers["most_vertical"]) == sorted(numbers["most_horizontal"])
    walked = numbers["trajectories"][str(numbers["directions"][0]["index"])]
    assert walked.shape == (3, 4)
    assert (walked[:, 0] == 0).all()
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("data:video/mp4;base64,") == 2
    assert "Trajectories" in page
    found = read_directions(tmp_path / "report", network.navigator)
    assert found is not None
    assert sum(bool(d.name) for d in found.directions) == 2
    with pytest.raises(InterpretationError, match="rotations are for"):
        study(
            network,
            tmp_path,
            tmp_path / "r",
            None,
            replace(settings, rotate="varimax", save=tmp_path),
        )


def test_activating_one_direction_leaves_the_others_at_rest():
    network = InMoDeGAN(32, 16, 4, 0.02)
    codes = network.sample_codes(torch.randn(2, 512), torch.randn(2, 3, 512))
    for sign in (1, -1):
        alone = activated(codes, 1, sign).alpha
        assert torch.equal(alone[..., 1], sign * codes.alpha[..., 1])
        assert alone[..., [0, 2, 3]].abs().max() == 0


# Rotating a trained network's basis


@pytest.mark.parametrize("orthogonal", ["qr", "polar", "svd"])
def test_a_rotated_basis_leaves_pictures_as_they_are(orthogonal, tmp_path):
    torch.manual_seed(0)
    network = Generator(32, 16, 5, 0.02, orthogonal=orthogonal).eval().requires_grad_(False)
    source, driving = torch.rand(3, 32, 32) * 2 - 1, torch.rand(4, 3, 32, 32) * 2 - 1

    def pictures(net: Any) -> Tensor:
        kind = net.navigator.weight.dtype
        encoded = net.encode_source(source[None].to(kind))
        codes = net.encode_motion(driving.to(kind))
        made = [net.render(encoded, codes, codes[:1], mode) for mode in ("relative", "absolute")]
        return torch.cat(made).double()

    q = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    single = copy.deepcopy(network)
    network.double()
    before, alpha = pictures(network), network.encode_motion(driving.double())
    basis = network.navigator.basis().clone()
    network.rotate_directions(q)
    torch.testing.assert_close(network.encode_motion(driving.double()), alpha @ q)
    turned = network.navigator.basis()
    torch.testing.assert_close(turned, q.T @ basis)
    assert (turned - basis).abs().max() > 0.1
    torch.testing.assert_close(pictures(network), before, atol=1e-9, rtol=0)

    # In float32 this untrained network turns rounding errors of its codes into 1e-5 and more.
    single.rotate_directions(q)
    rounding = (pictures(single) - before).abs()
    assert rounding.mean() < 1e-6
    assert rounding.max() < 1e-4
    save_network(single, tmp_path)
    again = load_network(tmp_path)
    torch.testing.assert_close(pictures(again), pictures(single), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="no orthogonal matrix of 5"):
        network.rotate_directions(torch.ones(5, 5))


def test_a_rotated_generator_from_noise_makes_the_same_videos():
    torch.manual_seed(0)
    network = InMoDeGAN(32, 16, 4, 0.02, motion_init=3.0).eval().requires_grad_(False)
    z_a, z_m = torch.randn(2, 512), torch.randn(2, 3, 512)
    before = network(z_a, z_m)
    network.rotate_directions(torch.linalg.qr(torch.randn(4, 4)).Q)
    torch.testing.assert_close(network(z_a, z_m), before, atol=1e-5, rtol=0)


def test_psnr_is_that_of_the_mean_squared_error():
    a, b = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.2)
    np.testing.assert_allclose(psnr(a, b), 10 * np.log10(4 / 0.04))


# The command


def test_the_command_on_puppets(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_network(Generator(32, 16, 3, 0.02), tmp_path / "net")
    (tmp_path / "experiment.yaml").write_text(
        "data:\n  class_path: data_modules.puppets.Puppets\n  init_args:\n    root: data\n"
        "    size: 32\n    train_identities: 4\n    test_identities: 2\n    clip_frames: 6\n"
        "    eval_frames: 9\n"
    )
    line = ["interpret", "--config", "experiment.yaml", "--checkpoint", "net", "--output", "report"]
    few = ["--sweeps", "2", "--steps", "1", "--data", "eval_frames=4"]
    assert cli.main([*line, *few, "--data", "batch_size=2"]) == 0
    assert "wrote report/index.html" in capsys.readouterr().out
    stored = json.loads((tmp_path / "report" / "report.json").read_text())
    assert "left_eye + right_eye" in stored["ground_truth"]["factors"]
    assert (tmp_path / "net" / "directions.json").is_file()


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["--config", "none.yaml"], 1, "No such file"),
        (["--config", "list.yaml"], 2, "is no experiment"),
        (["--config", "other.yaml"], 2, "no_such"),
        ([], 2, "--config experiments/"),
        (["--config", "list.yaml", "--sweeps", "0"], 1, "sweeps is 0"),
        (["--config", "list.yaml", "--rotate", "varimax"], 1, "go together"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    change, code, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    save_network(Generator(32, 16, 3, 0.02), tmp_path / "net")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "other.yaml").write_text(
        "data:\n  class_path: data_modules.puppets.Puppets\n  init_args: {no_such: 1}\n"
    )
    line = ["interpret", "--checkpoint", "net", "--output", "report", *change]
    assert cli.main(line) == code
    assert message in capsys.readouterr().err
