"""InMoDeGAN: its networks against plain ones written apart, its walk, its training step."""

import math
import os
import subprocess
import sys
import types
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset

from lmdvid.generate import Plan, generate
from lmdvid.networks.inmodegan import (
    Codes,
    Discriminators,
    Generator,
    StackDiscriminator,
    VideoDiscriminator,
    pyramid_indices,
)
from lmdvid.pretrained import convert, load_network, save_network
from lmdvid.tasks.inmodegan import InMoDeGAN

NETWORK = {
    "size": 32,
    "dim": 16,
    "directions": 16,
    "width": 0.02,
    "appearance_noise": 8,
    "motion_noise": 5,
    "mapping_layers": 2,
    "motion_layers": 2,
}
SMALL = {**NETWORK, "frames": 6, "speeds": [1, 2], "video_kind": "2d", "columns": 2}

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*module.* in eval mode.*"),
    pytest.mark.filterwarnings("ignore:.*only imitates bf16.*"),
]


def leaky(x):
    return math.sqrt(2) * torch.where(x > 0, x, 0.2 * x)


def low_pass(x, padding, stride=1):
    """The [1, 3, 3, 1] filter on (B, C, H, W), one channel after the other."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]).to(x)
    kernel = (taps[:, None] * taps / 64)[None, None]
    x = F.pad(x, [padding] * 4)
    return torch.cat(
        [F.conv2d(x[:, c : c + 1], kernel, stride=stride) for c in range(x.shape[1])], dim=1
    )


def stddev_plane(x):
    """One number for a batch of at most 4: how much its samples differ, as a further channel."""
    mean = x.mean(dim=0, keepdim=True)
    number = ((x - mean).square().mean(dim=0) + 1e-8).sqrt().mean()
    return torch.cat([x, number.expand_as(x[:, :1])], dim=1)


def equal(layer, x):
    fan_in = layer.weight[0].numel()
    return x @ layer.weight.T / math.sqrt(fan_in) + layer.bias


def plain_images(net, x):
    """What `ImageDiscriminator` computes, written out."""

    def conv(layer, x, **options):
        return F.conv2d(x, layer.weight / math.sqrt(layer.weight[0].numel()), **options)

    def bias(layer):
        return layer.bias[:, None, None]

    x = leaky(conv(net.pyramid.stem, x) + bias(net.pyramid.stem))
    for block in net.pyramid.blocks:
        h = leaky(conv(block.conv1, x, padding=1) + bias(block.conv1))
        h = leaky(conv(block.conv2, low_pass(h, 2), stride=2) + bias(block.conv2))
        x = (h + conv(block.skip, low_pass(x, 1), stride=2)) / math.sqrt(2)
    x = leaky(conv(net.conv, stddev_plane(x), padding=1) + bias(net.conv))
    return equal(net.logit, leaky(equal(net.hidden, x.flatten(1))))


def plain_videos(net, video):
    """What `VideoDiscriminator` computes, written out frame by frame."""

    def conv(layer, x, stride=1, padding=0):
        """3-D convolution as a sum of 2-D ones."""
        weight = layer.weight / math.sqrt(layer.weight[0].numel())
        reach = weight.shape[2] // 2
        frames = []
        for t in range(len(x)):
            frames.append(
                sum(
                    F.conv2d(x[t + s], weight[:, :, reach + s], stride=stride, padding=padding)
                    for s in range(-reach, reach + 1)
                    if 0 <= t + s < len(x)
                )
            )
        return torch.stack(frames)

    def bias(layer):
        return layer.bias[:, None, None]

    def halved(x):
        if len(x) == 1:
            return x
        return torch.stack([x[t : t + 2].mean(dim=0) for t in range(0, len(x), 2)])

    def each(function, x, *options):
        return torch.stack([function(frame, *options) for frame in x])

    x = video.transpose(0, 1)  # time first
    x = leaky(conv(net.stem, x) + bias(net.stem))
    for block in net.blocks:
        h = halved(leaky(conv(block.conv1, x, padding=1) + bias(block.conv1)))
        h = leaky(conv(block.conv2, each(low_pass, h, 2), stride=2) + bias(block.conv2))
        x = (h + conv(block.skip, each(low_pass, halved(x), 1), stride=2)) / math.sqrt(2)
    x = stddev_plane(x.movedim(0, 2)).movedim(2, 0)
    x = leaky(conv(net.conv, x, padding=1) + bias(net.conv))
    return equal(net.logit, leaky(equal(net.hidden, x.movedim(0, 2).flatten(1))))


def randomised(network):
    """Biases begin at zero, which would hide where they go."""
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_()
    return network.double()


@pytest.mark.parametrize("frames", [5, 8])
def test_video_discriminators_are_what_they_say(frames):
    video = torch.rand(3, frames, 3, 32, 32).double() * 2 - 1
    net = randomised(VideoDiscriminator(32, frames, 0.02))
    torch.testing.assert_close(net(video), plain_videos(net, video))
    net = randomised(StackDiscriminator(32, frames, 0.02))
    channels = torch.cat([video[:, t] for t in range(frames)], dim=1)
    torch.testing.assert_close(net(video), plain_images(net, channels))


@pytest.mark.parametrize("frames", range(1, 9))
def test_video_discriminators_take_any_length(frames):
    assert VideoDiscriminator(32, frames, 0.02)(torch.zeros(2, frames, 3, 32, 32)).shape == (2, 1)


def test_pyramid_indices_are_every_nth_frame_from_every_start():
    for frames in range(2, 20):
        for speed in range(1, frames // 2 + 1):
            starts = torch.arange(speed)
            sets = pyramid_indices(frames, speed, starts).tolist()
            for start, seen in zip(starts.tolist(), sets, strict=True):
                assert seen == list(range(start, frames, speed))[: frames // speed]
                assert len(seen) == frames // speed


def test_discriminators_see_one_frame_and_every_speed():
    """A clip whose frames hold their own numbers tells what reached whom."""
    nets = Discriminators(32, 8, [1, 2, 4], 0.02, "2d")
    seen = {}

    def spy(name):
        def forward(x):
            seen.setdefault(name, []).append(x[..., 0, 0])
            return torch.zeros(len(x), 1)

        return forward

    nets.image.forward = spy("image")
    for speed, net in zip(nets.speeds, nets.videos, strict=True):
        net.forward = spy(speed)
    clip = torch.arange(8.0).view(1, 8, 1, 1, 1).expand(5, 8, 3, 32, 32)
    for _ in range(40):
        assert list(nets(clip)) == ["image", "video_1", "video_2", "video_4"]
    frames = torch.stack(seen["image"])[..., 0]
    assert set(frames.flatten().tolist()) == set(range(8))
    assert all(row[..., 0].tolist() == [list(range(8))] * 5 for row in seen[1])
    for speed in (2, 4):
        starts = set()
        for rows in seen[speed]:
            for row in rows[..., 0].tolist():
                assert row == list(range(int(row[0]), 8, speed))
                starts.add(row[0])
        assert starts == set(range(speed))


def test_the_image_discriminator_sees_different_frames():
    nets = Discriminators(32, 4, [1], 0.02, "2d", image_frames=3)
    nets.image.forward = lambda pictures: pictures[:, 0, 0, :1]
    clip = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(5, 4, 3, 32, 32)
    for row in nets(clip)["image"].view(5, 3).tolist():
        assert len(set(row)) == 3


def test_the_walk_adds_steps_up():
    generator = Generator(**NETWORK).double()
    codes = generator.sample_codes(torch.randn(2, 8).double(), torch.randn(2, 6, 5).double())
    basis = generator.navigator.basis()
    walk = generator.latents(codes)
    for b in range(2):
        w = codes.appearance[b]
        torch.testing.assert_close(walk[b, 0], w)
        for t in range(6):
            for i in range(16):
                w = w + codes.alpha[b, t, i] * basis[i]
            torch.testing.assert_close(walk[b, t + 1], w)
    for start, stop in [(0, 3), (3, 7), (4, None), (6, 7)]:
        torch.testing.assert_close(generator.latents(codes, start, stop), walk[:, start:stop])


def test_motion_is_a_gru_from_w0():
    """The recurrence written out, from the paper's figure: h_0 = w_0, one noise vector a step."""
    generator = Generator(**NETWORK).double()
    z_a, z_m = torch.randn(2, 8).double(), torch.randn(2, 3, 5).double()
    codes = generator.sample_codes(z_a, z_m)
    x = z_a / z_a.square().mean(dim=1, keepdim=True).add(1e-8).sqrt()
    for layer in generator.appearance:
        weight = layer.weight * 0.01 / math.sqrt(layer.weight.shape[1])
        x = leaky(x @ weight.T + 0.01 * layer.bias)
    torch.testing.assert_close(codes.appearance, x)

    def slow(layer, x):
        return 0.1 * equal(layer, x)

    gru, h = generator.motion.recurrent, codes.appearance.tanh()
    for t in range(3):
        mine = z_m[:, t] @ gru.weight_ih_l0.T + gru.bias_ih_l0
        its = h @ gru.weight_hh_l0.T + gru.bias_hh_l0
        (reset_i, update_i, new_i), (reset_h, update_h, new_h) = mine.chunk(3, 1), its.chunk(3, 1)
        reset, update = (reset_i + reset_h).sigmoid(), (update_i + update_h).sigmoid()
        h = update * h + (1 - update) * (new_i + reset * new_h).tanh()
        hidden = leaky(slow(generator.motion.hidden[0], h))
        alpha = slow(generator.motion.magnitudes, hidden)
        torch.testing.assert_close(codes.alpha[:, t], alpha)


def test_without_steps_nothing_moves_and_each_frame_is_drawn_alone():
    generator = Generator(**NETWORK, noise="shared").eval()
    with torch.no_grad():
        for module in generator.modules():
            if getattr(module, "strength", None) is not None:
                module.strength.fill_(0.5)
    codes = generator.sample_codes(torch.randn(2, 8), torch.randn(2, 4, 5))
    still = generator.render(Codes(codes.appearance, torch.zeros_like(codes.alpha)))
    torch.testing.assert_close(still, still[:, :1].expand_as(still), atol=1e-5, rtol=0)
    video = generator.render(codes)
    assert (video[:, 1:] - video[:, :-1]).abs().amax(dim=(2, 3, 4)).min() > 1e-4
    for t in range(5):
        torch.testing.assert_close(generator.render(codes, t, t + 1)[:, 0], video[:, t])


def test_noise_is_shared_by_the_frames_of_a_clip():
    generator = Generator(**NETWORK, noise="shared").train()
    with torch.no_grad():
        generator.synthesis.conv.strength.fill_(1.0)
    w = torch.randn(1, 1, 16).expand(2, 3, 16)
    with torch.no_grad():
        video = generator.synthesis(w)
    torch.testing.assert_close(video, video[:, :1].expand_as(video))
    assert (video[0] - video[1]).abs().max() > 1e-3


def test_checkpointing_changes_no_gradient():
    z_a, z_m = torch.randn(2, 8), torch.randn(2, 3, 5)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        generator = Generator(**NETWORK, noise="shared", checkpointing=checkpointing)
        torch.manual_seed(2)
        generator(z_a, z_m).square().mean().backward()
        gradients.append([p.grad for p in generator.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize("orthogonal", ["qr", "polar", "svd"])
@pytest.mark.parametrize("gap", [0.0, 1e-9, 1e-4])
def test_gradients_stay_finite_where_singular_values_meet(orthogonal, gap):
    generator = Generator(**{**NETWORK, "orthogonal": orthogonal})
    q = torch.linalg.qr(torch.randn(16, 16)).Q
    with torch.no_grad():
        generator.navigator.weight.copy_(q * (1 + gap * torch.arange(16.0)))
        if orthogonal == "svd":
            generator.navigator.align_signs()
    codes = generator.sample_codes(torch.randn(2, 8), torch.randn(2, 3, 5))
    (generator.latents(codes) * torch.randn(2, 4, 16)).sum().backward()
    assert generator.navigator.weight.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in generator.parameters())


def test_the_basis_stays_orthonormal_in_training():
    generator = Generator(**{**NETWORK, "dim": 64, "directions": 64})
    navigator = generator.navigator
    adam = torch.optim.Adam(navigator.parameters(), 0.02, betas=(0.0, 0.99))
    target = torch.randn(64, 64)
    for _ in range(1000):
        adam.zero_grad()
        (navigator.displace(torch.eye(64)) * target).sum().backward()
        adam.step()
    gram = navigator.basis() @ navigator.basis().T
    assert (gram - torch.eye(64)).abs().max() < 1e-5
    # It has arrived, too: the polar factor of -target is the basis that makes the sum smallest.
    u, _, vh = torch.linalg.svd(target)
    assert (navigator.basis() * target).sum() < 0.98 * -(u @ vh * target).sum()


@pytest.mark.parametrize("orthogonal", ["qr", "polar", "svd"])
def test_ordered_directions_draw_the_same_videos(orthogonal, tmp_path):
    generator = Generator(**{**NETWORK, "orthogonal": orthogonal}).eval()
    z_a, z_m = torch.randn(2, 8), torch.randn(2, 5, 5)
    with torch.no_grad():
        before = generator(z_a, z_m)
        spread = generator.order_directions(videos=64)
        torch.testing.assert_close(generator(z_a, z_m), before, atol=1e-4, rtol=1e-4)
    assert (spread.diff() <= 0).all()
    again = generator.order_directions(videos=64)
    torch.testing.assert_close(again, spread)
    save_network(generator, tmp_path)
    loaded = load_network(tmp_path)
    torch.testing.assert_close(loaded.navigator.basis(), generator.navigator.basis())
    with torch.no_grad():
        torch.testing.assert_close(loaded(z_a, z_m), before, atol=1e-4, rtol=1e-4)


def test_truncation_pulls_towards_the_mean_of_training(tmp_path):
    task = InMoDeGAN(**SMALL)
    trainer(tmp_path, max_steps=3).fit(task, Data())
    generator = task.generator_ema.network
    assert generator.centre.abs().max() > 0
    z_a, z_m = torch.randn(3, 8), torch.randn(3, 2, 5)
    whole = generator.sample_codes(z_a, z_m).appearance
    half = generator.sample_codes(z_a, z_m, truncation=0.5).appearance
    torch.testing.assert_close(half, 0.5 * (whole + generator.centre))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Generator(size=48), "power of two"),
        (lambda: Generator(mapping_layers=0), "mapping_layers=0"),
        (lambda: Generator(noise="loud"), "'none' or 'shared'"),
        (lambda: Discriminators(32, 16, [1, 1]), "each once"),
        (lambda: Discriminators(32, 16, []), "one or more"),
        (lambda: Discriminators(32, 16, [9]), "choose speeds from 1 to 8"),
        (lambda: Discriminators(32, 16, kind="4d"), "'3d' or '2d'"),
        (lambda: Discriminators(32, 16, image_frames=17), "choose 1 to 16"),
        (lambda: Discriminators(32, 16)(torch.zeros(1, 8, 3, 32, 32)), "take 16"),
        (lambda: Generator(**NETWORK)(torch.zeros(2, 9), torch.zeros(2, 1, 5)), r"\(B, 8\)"),
        (lambda: Generator(**NETWORK)(torch.zeros(2, 8), torch.zeros(2, 5)), r"\(B, T - 1, 5\)"),
        (lambda: InMoDeGAN(**SMALL, adversarial=0.0), "nothing else trains this"),
        (lambda: InMoDeGAN(**SMALL).predict_step({"source": 0}, 0), "generate 16"),
    ],
)
def test_nonsense_is_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


# Training


class Squares(Dataset):
    """Clips of a bright square that moves; deterministic."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        video = torch.full((6, 3, 32, 32), -0.5)
        for t in range(6):
            left = (5 * index + 2 * t) % 20
            video[t, :, 8:20, left : left + 12] = 0.7
        return {"video": video, "key": f"clip{index}", "frames": torch.arange(6)}


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Squares(), batch_size=4)

    def val_dataloader(self):
        return DataLoader(Squares(), batch_size=4)

    test_dataloader = val_dataloader

    def predict_dataloader(self):
        return DataLoader([{"index": i} for i in range(5)], batch_size=2)


def trainer(folder, **options):
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": CSVLogger(folder, name="run"),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    return L.Trainer(**{**defaults, **options})


def test_a_step_equals_one_written_plainly(tmp_path):
    """Summed losses of all discriminators and their penalties, on one set of fakes."""
    L.seed_everything(4, verbose=False)
    task = InMoDeGAN(**SMALL, r1=2.0, discriminator_every=3)
    generator = Generator(**NETWORK)
    discriminators = Discriminators(32, 6, [1, 2], 0.02, "2d")
    generator.load_state_dict(task.generator.state_dict())
    discriminators.load_state_dict(task.discriminator.state_dict())
    run = trainer(tmp_path, max_steps=1)
    run.fit(task, Data())

    real = next(iter(Data().train_dataloader()))["video"]
    torch.manual_seed(hash((4, 0, 0)))  # what the step's random numbers begin with
    adam_g = torch.optim.Adam(generator.parameters(), 0.002, betas=(0.0, 0.99))
    adam_d = torch.optim.Adam(discriminators.parameters(), 0.002 * 0.75, betas=(0.0, 0.99**0.75))
    codes = generator.sample_codes(torch.randn(4, 8), torch.randn(4, 5, 5))
    generator.centre.lerp_(codes.appearance.detach().mean(dim=0), 0.005)
    fake = generator.render(codes)

    def judged(video):
        frames = torch.rand(4, 6).argsort(dim=1)
        start = torch.randint(2, (4,))
        pictures = torch.stack([video[b, frames[b, 0]] for b in range(4)])
        every_second = torch.stack([video[b, start[b] :: 2] for b in range(4)])
        first, second = discriminators.videos
        return [
            plain_images(discriminators.image, pictures),
            plain_images(first, video.flatten(1, 2)),
            plain_images(second, every_second.flatten(1, 2)),
        ]

    sum(torch.log1p(torch.exp(-logits)).mean() for logits in judged(fake)).backward()
    adam_g.step()
    adam_d.zero_grad()
    real = real.clone().requires_grad_()
    real_logits, fake_logits = judged(real), judged(fake.detach())
    loss = 0
    for true, false in zip(real_logits, fake_logits, strict=True):
        loss = loss + torch.log1p(torch.exp(-true)).mean() + torch.log1p(torch.exp(false)).mean()
        gradient = torch.autograd.grad(true.sum(), real, create_graph=True)[0]
        loss = loss + 3 * 2.0 / 2 * gradient.square().sum(dim=(1, 2, 3, 4)).mean()
    loss.backward()
    adam_d.step()
    logged = run.callback_metrics
    total = sum(value for name, value in logged.items() if name.startswith("discriminator/"))
    torch.testing.assert_close(total, loss.detach(), rtol=1e-4, atol=1e-4)
    for ours, plain in [(task.generator, generator), (task.discriminator, discriminators)]:
        for name, value in ours.state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[name], atol=5e-4, rtol=1e-3)


def test_bf16_mixed_trains_and_codes_keep_float32(tmp_path):
    task = InMoDeGAN(**{**SMALL, "video_kind": "3d"}, discriminator_every=1)
    trainer(tmp_path, precision="bf16-mixed", max_steps=2).fit(task, Data())
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in task.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        codes = task.generator.sample_codes(torch.randn(2, 8), torch.randn(2, 3, 5))
        walk = task.generator.latents(codes)
    assert codes.alpha.dtype == walk.dtype == torch.float32


def test_resuming_equals_an_undisturbed_run(tmp_path):
    def fit(folder, steps, resume=None):
        L.seed_everything(1, verbose=False)
        task = InMoDeGAN(**SMALL, noise="shared", discriminator_every=2)
        kept = ModelCheckpoint(folder / "kept", "{step}", every_n_train_steps=1, save_top_k=-1)
        run = trainer(folder, max_steps=steps, callbacks=[kept])
        run.fit(task, Data(), ckpt_path=resume, weights_only=True)
        return task

    whole = fit(tmp_path / "whole", 4)
    fit(tmp_path / "half", 2)
    resumed = fit(tmp_path / "rest", 4, tmp_path / "half" / "kept" / "step=2.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_checkpoint_becomes_a_folder_with_ordered_directions(tmp_path):
    task = InMoDeGAN(**SMALL)
    kept = ModelCheckpoint(tmp_path / "kept", "last", every_n_train_steps=1)
    trainer(tmp_path, max_steps=2, callbacks=[kept]).fit(task, Data())
    report = convert(tmp_path / "kept" / "last.ckpt", tmp_path / "folder")
    assert "directions" in report
    network = load_network(tmp_path / "folder")
    z_a, z_m = torch.randn(200, 8), torch.randn(200, 5, 5)
    with torch.no_grad():
        spread = network.sample_codes(z_a, z_m).alpha.flatten(0, 1).std(dim=0)
        torch.testing.assert_close(
            network(z_a[:2], z_m[:2]), task.generator_ema(z_a[:2], z_m[:2]), atol=1e-4, rtol=1e-4
        )
    basis = network.navigator.basis()
    assert (spread[0] > 1.5 * spread[-1]).all()
    network.order_directions()  # finds them in order
    torch.testing.assert_close(network.navigator.basis(), basis)


def test_predictions_are_named_by_index(tmp_path):
    task = InMoDeGAN(**SMALL)
    parts = trainer(tmp_path).predict(task, Data())
    assert [key for part in parts for key in part["key"]] == [f"{i:06d}" for i in range(5)]
    assert parts[0]["video"].shape == (2, 6, 3, 32, 32)


def test_scores_and_samples(tmp_path):
    """The distance is that of the same videos, embedded by hand; a second epoch's as well."""
    from lmdvid.callbacks import SampleVideos
    from lmdvid.metrics.frechet import frechet_distance
    from lmdvid.networks.features import EfficientNetClips
    from lmdvid.video import probe

    samples = SampleVideos(clips=4, fps=10, output=str(tmp_path / "out" / "sample.mp4"))
    task = InMoDeGAN(**SMALL, lr=1e-12)
    run = trainer(
        tmp_path, max_epochs=2, callbacks=[samples], limit_val_batches=1.0, num_sanity_val_steps=1
    )
    run.fit(task, Data())
    real = torch.stack([Squares()[i]["video"] for i in range(8)])
    embed = EfficientNetClips()
    fake = generate(task.generator_ema.network, Plan(frames=6), range(8))
    sides = [embed(videos).double() for videos in (real, fake)]
    moments = [value for side in sides for value in (side.mean(0), side.T.cov())]
    expected = frechet_distance(*moments)
    scores = run.callback_metrics
    torch.testing.assert_close(
        scores["val/fd_effnetlite0_6f"].double(), expected, rtol=1e-4, atol=0
    )
    assert scores["val/clips"] == 8
    motion = (real[:, 1:] - real[:, :-1]).abs().mean()
    torch.testing.assert_close(scores["val/real_motion"], motion)
    videos = sorted((tmp_path / "run" / "version_0" / "samples").iterdir())
    assert len(videos) == 2
    info = probe(videos[-1])
    assert (info.frames, info.width, info.height) == (6, 2 * 32, 4 * 32)
    (scores,) = run.test(task, Data(), verbose=False)
    assert scores["test/clips"] == 8
    compared = {}

    class Compared(L.Callback):
        def on_test_batch_end(self, trainer, module, outputs, batch, *args):
            compared.setdefault("real", []).append(outputs["compared"]["noise"][1])
            compared.setdefault("fake", []).append(outputs["compared"]["noise"][0])

    trainer(tmp_path, callbacks=[Compared()]).test(task, Data(), verbose=False)
    torch.testing.assert_close(torch.cat(compared["real"]), real)
    torch.testing.assert_close(torch.cat(compared["fake"]), fake)
    assert probe(tmp_path / "out" / "sample.mp4").frames == 6


@pytest.mark.parametrize("shares", [[[3, 1]], [[2, 1], [2]], [[2], [1], [1]]])
def test_the_same_videos_on_any_number_of_processes(shares, monkeypatch):
    """Clip n of process r of w stands against video n w + r, whatever the batches are."""
    monkeypatch.setattr(InMoDeGAN, "log", lambda *args, **options: None)
    monkeypatch.setattr(InMoDeGAN, "log_dict", lambda *args, **options: None)
    task = InMoDeGAN(**SMALL).eval()
    drawn = {}
    for rank, batches in enumerate(shares):
        task._trainer = types.SimpleNamespace(
            sanity_checking=False, world_size=len(shares), global_rank=rank
        )
        task.on_test_epoch_start()
        count = 0
        for index, size in enumerate(batches):
            batch = {"video": torch.zeros(size, 6, 3, 32, 32)}
            for video in task.test_step(batch, index)["compared"]["noise"][0]:
                drawn[count * len(shares) + rank] = video
                count += 1
    clips = range(sum(map(sum, shares)))
    assert sorted(drawn) == list(clips)
    expected = generate(task.generator_ema.network, Plan(frames=6), clips)
    torch.testing.assert_close(torch.stack([drawn[clip] for clip in clips]), expected)


@pytest.mark.slow
def test_two_processes(tmp_path):
    """They train with identical weights, score one set of videos, and predict each number once."""
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{i}.pt") for i in range(2))
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
    assert first["score"] == second["score"]
    assert first["clips"] == second["clips"] == 8
    made = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert made == [f"{i:06d}.mp4" for i in range(5)]


TWO_PROCESSES = """
import sys

import torch

sys.path.insert(0, {tests!r})
import test_inmodegan as t
from lmdvid.callbacks import PredictionVideos

t.L.seed_everything(3, verbose=False)
task = t.InMoDeGAN(**t.SMALL, discriminator_every=2)
run = t.trainer(
    {folder!r},
    devices=2,
    strategy="ddp_find_unused_parameters_true",
    max_steps=2,
    limit_val_batches=1.0,
    callbacks=[PredictionVideos({folder!r} + "/made")],
)
run.fit(task, t.Data())
scores = run.callback_metrics
content = {{
    "state": task.state_dict(),
    "score": scores["val/fd_effnetlite0_6f"].item(),
    "clips": scores["val/clips"].item(),
}}
torch.save(content, {folder!r} + f"/rank{{run.global_rank}}.pt")
run.predict(task, t.Data(), return_predictions=False)
"""
