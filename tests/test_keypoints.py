"""What FOMM and MRAA share: axes, hulls, transfers, deformations, and how both train."""

import math
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from test_tasks import Squares, trainer
from torch.utils.data import DataLoader, Dataset

from lmdvid import checkpoints, cli
from lmdvid.animate import AnimationError, Animator
from lmdvid.networks import WeightsError, fomm, lia, mraa
from lmdvid.networks.keypoints import (
    Keypoints,
    bumps,
    hull_area,
    inverse,
    local_motions,
    pose_distance,
    transfer,
    unflipped,
)
from lmdvid.ops.reference import identity_grid
from lmdvid.ops.shrink import shrink
from lmdvid.pretrained import load_network, save_network
from lmdvid.tasks.fomm import FOMM
from lmdvid.tasks.keypoints import Deformation, equivariance
from lmdvid.tasks.mraa import MRAA
from lmdvid.video import to_float, to_uint8, write_image

TINY = {"shrink": 1, "blocks": 3, "padding": 3}
SMALL = {"size": 32, "width": 0.06, "perceptual": "none", "l1": 1.0, **TINY}


def lively(network):
    """Untrained, but with keypoints that differ between pictures, and frames that show it."""
    heads = network.detector if isinstance(network, fomm.Generator) else network.regions
    with torch.no_grad():
        heads.heatmaps.weight.mul_(30)
        network.painter.final.weight.mul_(30)
    return network.eval()


NETWORKS = {
    "fomm": lambda: lively(fomm.Generator(32, 4, 0.25, **TINY)),
    "mraa": lambda: lively(mraa.Generator(32, 4, 0.25, **TINY)),
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*module.* in eval mode.*"),
]


def some(count: int, keypoints: int = 5, dtype=torch.float64) -> Keypoints:
    shape = torch.eye(2) + 0.3 * torch.randn(count, keypoints, 2, 2)
    return Keypoints(torch.rand(count, keypoints, 2).to(dtype) * 2 - 1, shape.to(dtype))


def covariances(count: int, dtype: torch.dtype) -> torch.Tensor:
    root = torch.randn(count, 2, 2, dtype=dtype)
    matrix = root @ root.mT
    return (matrix + matrix.mT) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_axes_equal_lapacks_with_their_signs(dtype):
    matrix = covariances(100_000, dtype)
    u, s, _ = torch.linalg.svd(matrix)
    ours = mraa.principal_axes(matrix)
    torch.testing.assert_close(ours, u * s.sqrt()[:, None], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ours @ ours.mT, matrix, atol=1e-5, rtol=1e-4)


def test_axes_of_diagonal_matrices_are_lapacks():
    for diagonal in ([3.0, 1.0], [1.0, 3.0], [2.0, 2.0]):
        matrix = torch.diag(torch.tensor(diagonal))
        u, s, _ = torch.linalg.svd(matrix)
        torch.testing.assert_close(mraa.principal_axes(matrix), u * s.sqrt())


@pytest.mark.parametrize("matrix", [torch.eye(2), torch.zeros(2, 2), torch.ones(2, 2)])
def test_gradients_of_axes_are_finite_wherever_they_are_undefined(matrix):
    matrix = matrix.clone().requires_grad_()
    axes = mraa.principal_axes(matrix)
    (axes * torch.tensor([[1.0, 2], [3, 4]])).sum().backward()
    assert axes.isfinite().all()
    assert matrix.grad.isfinite().all()


def test_gradients_of_axes_are_those_of_finite_differences():
    matrix = covariances(5, torch.float64)
    # Only symmetric matrices occur: let a, b and c vary.
    entries = torch.stack([matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 0, 1]]).requires_grad_()

    def axes(entries):
        a, b, c = entries
        return mraa.principal_axes(torch.stack([a, c, c, b], -1).view(-1, 2, 2))

    assert torch.autograd.gradcheck(axes, (entries,))


def test_inverses():
    matrix = torch.randn(100, 2, 2).double()
    torch.testing.assert_close(inverse(matrix), torch.linalg.inv(matrix))
    assert inverse(torch.zeros(1, 2, 2)).isfinite().all()
    assert (unflipped(matrix)[:, 0, 0] >= 0).all()


def test_area_of_a_hull():
    square = torch.tensor([[0.0, 0], [2, 0], [2, 1], [0, 1], [1, 0.5], [1, 0], [0, 0]])
    assert hull_area(square) == pytest.approx(2)
    assert hull_area(square[torch.randperm(7)]) == pytest.approx(2)
    assert hull_area(torch.tensor([[0.0, 0], [1, 1], [2, 2]])) == pytest.approx(0)
    circle = torch.arange(100) * (2 * math.pi / 100)
    points = torch.stack([circle.cos(), circle.sin()], dim=1).double()
    assert hull_area(points) == pytest.approx(50 * math.sin(2 * math.pi / 100))


def test_relative_motion_starts_at_the_source_and_scales_with_its_extent():
    source, driving = some(1), some(4)
    reference = Keypoints(driving.position[:1], driving.shape[:1])
    for adapt in (False, True):
        moved = transfer(source, driving, reference, adapt, 1.0)
        torch.testing.assert_close(moved.position[:1], source.position)
        torch.testing.assert_close(moved.shape[:1], source.shape)
    still = transfer(source, driving, reference, False, 0.0)
    torch.testing.assert_close(still.position, source.position.expand(4, -1, -1))
    torch.testing.assert_close(still.shape, source.shape.expand(4, -1, -1, -1))
    # A source three times as large as the driver's first pose moves three times as far.
    large = Keypoints(3 * reference.position, source.shape)
    moved = transfer(large, driving, reference, True, 1.0).position
    torch.testing.assert_close(moved, 3 * driving.position)
    torch.testing.assert_close(
        transfer(large, driving, reference, True, 2.0).position - large.position,
        2 * (moved - large.position),
    )


def test_the_nearest_pose_does_not_depend_on_place_and_size():
    source = some(1)
    others = some(3)
    same = Keypoints(0.3 * source.position + 0.5, source.shape)
    driving = Keypoints(
        torch.cat([others.position, same.position]), torch.cat([others.shape] * 2)[:4]
    )
    distance = pose_distance(source, driving)
    assert distance.argmin() == 3
    assert distance[3] < 1e-9


def test_local_motions_take_keypoints_to_keypoints():
    source, driving = some(2), some(2)
    motions = local_motions(driving, source, (9, 9), flips=False)
    grid = identity_grid(9, 9, torch.zeros((), dtype=torch.float64))
    z = grid[:, 2, 7]
    for b in range(2):
        for k in range(5):
            linear = source.shape[b, k] @ torch.linalg.inv(driving.shape[b, k])
            expected = source.position[b, k] + linear @ (z - driving.position[b, k])
            torch.testing.assert_close(motions[b, k, :, 2, 7], expected)


def test_bumps_are_gaussians():
    position, precision = torch.tensor([[[0.25, -0.5]]]), torch.tensor([[[[4.0, 1.0], [1.0, 9.0]]]])
    made = bumps(position, precision, (5, 9))
    offset = identity_grid(5, 9, made)[:, 1, 6] - position[0, 0]
    assert made[0, 0, 1, 6].item() == pytest.approx(
        math.exp(-0.5 * float(offset @ precision[0, 0] @ offset))
    )


@pytest.mark.parametrize(("factor", "taps"), [(2, 5), (4, 13), (8, 29)])
def test_shrinking_is_a_strided_gaussian(factor, taps):
    image = torch.randn(1, 2, 32, 40).double()
    sigma = (factor - 1) / 2
    at = torch.arange(taps).double() - taps // 2
    kernel = torch.exp(-at.square() / (2 * sigma**2))
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    expected = F.conv2d(image.movedim(1, 0), kernel[None, None], padding=taps // 2).movedim(0, 1)
    torch.testing.assert_close(shrink(image, factor), expected[..., ::factor, ::factor])
    assert shrink(image, 1) is image


def test_a_deformations_jacobian_is_its_derivative():
    deformation = Deformation.draw(3, 0.1, 0.05, 5, torch.zeros((), dtype=torch.float64))
    z = torch.rand(3, 7, 2).double() * 2 - 1
    jacobian = deformation.jacobian(z)
    for axis in range(2):
        step = torch.zeros(2).double()
        step[axis] = 1e-6
        slope = (deformation(z + step) - deformation(z - step)) / 2e-6
        torch.testing.assert_close(jacobian[..., axis], slope, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_equivariance_is_zero_where_nothing_is_deformed(name):
    network = NETWORKS[name]().eval()
    if name == "fomm":
        torch.nn.init.normal_(network.detector.jacobians.weight, std=0.1)
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        found = network.detect(image)
        for sigma, zero in ((0.0, True), (0.05, False)):
            deformation = Deformation.draw(2, sigma, sigma / 10, 5, image)
            moved = network.detect(deformation.warp(image, align_corners=True))
            terms = equivariance(found, moved, deformation, flips=name == "mraa")
            assert all((float(value) < 2e-5) == zero for value in terms.values()), terms


@pytest.mark.parametrize("name", NETWORKS)
def test_a_picture_driven_by_itself_stands_still(name):
    network = NETWORKS[name]().eval()
    flows = []
    network.motion.register_forward_hook(lambda module, inputs, output: flows.append(output[0]))
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        source = network.encode_source(image)
        network.render(source, network.encode_motion(image), None, "absolute")
        codes = network.encode_motion(torch.rand(3, 3, 32, 32))
        network.render(source, codes, codes[:1], "relative")
    for flow in (flows[0], flows[1][:1]):
        assert (flow - identity_grid(32, 32, flow)).abs().max() < 1e-5


def test_backgrounds_stand_still_at_first():
    for kind in ("shift", "affine", "perspective"):
        network = mraa.Generator(32, 4, 0.06, background=kind, **TINY).eval()
        source = network.encode_source(torch.rand(1, 3, 32, 32))
        matrix = network.background(source, torch.rand(2, 3, 32, 32))
        torch.testing.assert_close(matrix, torch.eye(3).expand(2, -1, -1))


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match=r"size=64, shrink=4, blocks=5"):
        fomm.Generator(64)
    with pytest.raises(ValueError, match=r"takes \(B, 3, 32, 32\)"):
        NETWORKS["mraa"]().encode_motion(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="does not pad, and needs 61 pixels; choose 64"):
        FOMM(size=60, shrink=1, blocks=2, adversarial=1.0)
    shown, _ = fomm.PatchDiscriminator(width=0.06)(torch.zeros(1, 3, 61, 61))
    assert shown.shape[-2:] == (2, 2)
    with pytest.raises(ValueError, match="more than 1 spatial element"):  # of torch, for 60
        fomm.PatchDiscriminator(width=0.06)(torch.zeros(1, 3, 60, 60))


# Animation


@pytest.mark.parametrize("name", NETWORKS)
def test_every_mode_streams_what_the_network_renders(name):
    network = NETWORKS[name]().eval()
    source, driving = torch.rand(3, 32, 32) * 2 - 1, torch.rand(5, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        encoded, codes = network.encode_source(source[None]), network.encode_motion(driving)
    animator = Animator(network, dtype=torch.float32, batch_size=2)
    for mode in network.modes:
        with torch.no_grad():
            expected = network.render(encoded, codes, codes[:1], mode)
        for made in (
            animator.animate(source, driving, mode),
            torch.stack(list(animator.stream(source, iter(driving), mode))),
        ):
            torch.testing.assert_close(made, expected, atol=2e-3, rtol=1e-3)
    with torch.no_grad():
        twice = network.render(encoded, codes, codes[3:4], "relative", 2.0)
    made = animator.animate(source, driving, magnitude=2.0, reference=3)
    torch.testing.assert_close(made, twice, atol=2e-3, rtol=1e-3)
    half = Animator(network, dtype=torch.bfloat16).animate(source, driving, "absolute")
    assert (half - animator.animate(source, driving, "absolute")).abs().mean() < 0.02


@pytest.mark.parametrize("name", [*NETWORKS, "lia"])
def test_the_best_reference_is_the_frame_posed_as_the_source(name, tmp_path):
    make = NETWORKS.get(name, lambda: lia.Generator(32, 16, 3, 0.1))
    animator = Animator(make().eval(), dtype=torch.float32, batch_size=2)
    driving = to_float(to_uint8(torch.rand(5, 3, 32, 32) * 2 - 1))
    made = animator.animate(driving[3], driving, reference="best")
    expected = animator.animate(driving[3], driving, reference=3)
    torch.testing.assert_close(made, expected, atol=2e-3, rtol=1e-3)
    assert (made - animator.animate(driving[3], driving)).abs().max() > 0.01
    for i, frame in enumerate(driving):
        write_image(tmp_path / "clip" / f"{i}.png", to_uint8(frame))
    save_network(animator.network, tmp_path / "network")
    line = ["--source", "clip/3.png", "--driving", "clip", "--reference", "best"]
    line = [str(tmp_path / part) if "clip" in part else part for part in line]
    line += ["--checkpoint", str(tmp_path / "network"), "--output", str(tmp_path / "x.npz")]
    assert cli.main(["animate", *line, "--device", "cpu", "--dtype", "float32"]) == 0
    with np.load(tmp_path / "x.npz") as data:
        torch.testing.assert_close(torch.from_numpy(data["video"]), made, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fomm", {"mode": "avd"}, "'relative' or 'adaptive' or 'absolute', which this"),
        ("lia", {"mode": "adaptive"}, "'relative' or 'absolute', which this"),
        ("fomm", {"absolute_directions": [0]}, "this network has no motion directions"),
        ("mraa", {"edit": {0: 1.0}}, "this network has no motion directions"),
        ("fomm", {"mode": "absolute", "magnitude": 2.0}, "of which there is no multiple"),
        ("mraa", {"mode": "avd", "reference": 1}, "mode avd counts from no reference"),
        ("mraa", {"reference": 9}, "no driving frame 9, counted from 0"),
        ("lia", {"reference": -1}, "choose a frame, counted from 0, or best"),
    ],
)
def test_what_a_network_lacks_is_one_clear_error(name, options, message):
    network = NETWORKS.get(name, lambda: lia.Generator(32, 16, 3, 0.1))().eval()
    with pytest.raises(AnimationError, match=message):
        Animator(network).animate(torch.rand(3, 32, 32), torch.rand(2, 3, 32, 32), **options)


# Training


class Data(L.LightningDataModule):
    """Two batches an epoch; larger ones for FOMM's discriminator, which 32 px are too small for."""

    def __init__(self, larger: bool = False):
        super().__init__()
        self.larger = larger

    def train_dataloader(self):
        return DataLoader(Larger() if self.larger else Squares(8), batch_size=4)

    def val_dataloader(self):
        return DataLoader(Squares(2, 4, cross=True), batch_size=2)


class Larger(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        item = Squares(8)[index]
        return {"video": F.interpolate(item["video"], scale_factor=2.0), "key": item["key"]}


def adversarial() -> FOMM:
    """With everything: LSGAN, feature matching, spectral norm, keypoints shown."""
    settings = {**SMALL, "size": 64, "shrink": 2}
    return FOMM(keypoints=3, adversarial=1.0, show_keypoints=True, ema=0.9, **settings)


def second_stage() -> MRAA:
    """As if its own network, untrained as it is, were the first stage's."""
    task = MRAA(regions=3, stage="avd", **SMALL)
    FOLDERS.append(TemporaryDirectory())
    save_network(task.generator, FOLDERS[-1].name)
    task.start_from = FOLDERS[-1].name
    return task


FOLDERS: list[TemporaryDirectory] = []  # until the tests end
TASKS = {
    "fomm": lambda: FOMM(keypoints=3, **SMALL),
    "mraa": lambda: MRAA(regions=3, **SMALL),
    "avd": second_stage,
}


def fit(task, data, folder, steps, resume=None, **options):
    L.seed_everything(1, verbose=False)
    kept = ModelCheckpoint(folder / "kept", "{step}", every_n_train_steps=1, save_top_k=-1)
    run = trainer(folder, max_steps=steps, callbacks=[kept], limit_val_batches=0, **options)
    run.fit(task, data, ckpt_path=resume, weights_only=True)
    return task


@pytest.mark.parametrize("name", ["fomm", "mraa", "avd", "adversarial"])
def test_resuming_equals_an_undisturbed_run(tmp_path, name):
    make = TASKS.get(name, adversarial)
    data = Data(larger=name == "adversarial")
    first = make()
    state = first.state_dict()
    before = {k: v.clone() for k, v in state.items()}
    whole = fit(first, data, tmp_path / "whole", 3)
    fit_again = make()
    resumed = fit(fit_again, data, tmp_path / "rest", 3, tmp_path / "whole/kept/step=2.ckpt")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    learnt = {k.split(".")[1] for k, v in whole.state_dict().items() if not v.equal(before[k])}
    expected = {
        "fomm": {"detector", "motion", "painter", "network"},
        "mraa": {"regions", "motion", "painter", "behind", "network"},
        "avd": {"avd", "network"},
    }
    if name in expected:
        assert learnt - {"n_updates"} == expected[name]


@pytest.mark.parametrize("name", ["fomm", "mraa"])
def test_it_learns(tmp_path, name):
    task = TASKS[name]()
    task.lr = task.detector_lr = 0.005
    video = torch.stack([Squares()[i]["video"] for i in range(8)])

    def error() -> float:
        return float((task(video[:, 0], video[:, 1:])[:, 0] - video[:, 1]).abs().mean())

    before = error()
    trainer(tmp_path, max_steps=20, limit_val_batches=0).fit(task, Data())
    assert error() < 0.5 * before


def test_learning_rates_fall_with_epochs(tmp_path):
    task = FOMM(keypoints=3, detector_lr=1e-3, milestones=[1, 2], **SMALL)
    seen = []

    class Note(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            seen.append([g["lr"] for g in trainer.optimizers[0].param_groups])

    run = trainer(
        tmp_path, max_epochs=3, limit_train_batches=1, limit_val_batches=0, callbacks=[Note()]
    )
    run.fit(task, Data())
    assert seen == [pytest.approx([2e-4 * factor, 1e-3 * factor]) for factor in (1, 0.1, 0.01)]


@pytest.mark.filterwarnings("ignore:.*not resumable.*")
def test_the_second_stage_begins_with_the_first_ones_network(tmp_path):
    first = fit(TASKS["mraa"](), Data(), tmp_path / "first", 1)
    start = str(tmp_path / "first/kept/step=1.ckpt")
    second = MRAA(regions=3, stage="avd", start_from=start, **SMALL)
    fit(second, Data(), tmp_path / "second", 1)
    for key, value in first.generator.regions.state_dict().items():
        assert torch.equal(value, second.generator.regions.state_dict()[key]), key
    assert load_network(tmp_path / "second/kept/step=1.ckpt").modes[-1] == "avd"
    with pytest.raises(WeightsError, match=r"checkpoint as model\.init_args\.start_from"):
        fit(MRAA(regions=3, stage="avd", **SMALL), Data(), tmp_path / "none", 1)
    # What goes on needs no first stage any more.
    last = tmp_path / "second/kept/step=1.ckpt"
    fit(MRAA(regions=3, stage="avd", **SMALL), Data(), tmp_path / "more", 2, last)
    task = MRAA(regions=3, stage="avd", start_from=str(tmp_path / "gone.ckpt"), **SMALL)
    run = checkpoints.Trainer(
        default_root_dir=tmp_path, max_steps=2, accelerator="cpu", logger=False,
        limit_val_batches=0, enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    run.fit(task, Data(), ckpt_path=last, weights_only=True)
    assert run.global_step == 2
    other = FOMM(keypoints=3, start_from=start, **SMALL)
    with pytest.raises(WeightsError, match="another network"):
        fit(other, Data(), tmp_path / "other", 1)


def test_scores_are_those_of_reconstruction_and_of_the_cross_identity(tmp_path):
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    run.fit(TASKS["avd"](), Data())
    assert {"val/psnr", "val/cross_psnr"} <= set(run.callback_metrics)


@pytest.mark.slow
def test_two_processes_train_with_identical_networks(tmp_path):
    """Weights everywhere; of the network that is saved and shown, statistics as well."""
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{i}.pt") for i in range(2))
    for name in first:
        assert first[name]["clips"] != second[name]["clips"]
        for key, value in first[name]["state"].items():
            if "generator_ema" in key or "running" not in key:
                assert torch.equal(value, second[name]["state"][key]), f"{name} {key}"


TWO_PROCESSES = """
import sys

import torch

sys.path.insert(0, {tests!r})
import test_keypoints as t

content = {{}}
tasks = dict(t.TASKS, adversarial=t.adversarial)
for name, make in tasks.items():
    t.L.seed_everything(3, verbose=False)
    task, clips = make(), []

    class Note(t.L.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            clips.extend(batch["key"])

    run = t.trainer(
        {folder!r}, devices=2, strategy="ddp_find_unused_parameters_true", max_steps=2,
        limit_val_batches=0, callbacks=[Note()], enable_checkpointing=False,
    )
    run.fit(task, t.Data(larger=name == "adversarial"))
    content[name] = {{"state": task.state_dict(), "clips": clips}}
torch.save(content, {folder!r} + f"/rank{{run.global_rank}}.pt")
"""
