"""G3AN: its networks against the original's values, its attention, its training step."""

import math

import lightning as L
import originals
import pytest
import torch
import torch.nn.functional as F
from generation import Data, Squares, differences, fit_and_resume, trainer, two_processes

from lmdvid.generate import Plan, generate
from lmdvid.networks import g3an
from lmdvid.networks.dcgan import ImageDiscriminator
from lmdvid.pretrained import convert, load_network
from lmdvid.tasks.g3an import G3AN

SYSTEM = "g3an_64"
NETWORK = {"size": 32, "width": 0.0625, "appearance_noise": 8, "motion_noise": 5}
SMALL = {**NETWORK, "columns": 2, "rows": 3}

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*module.* in eval mode.*"),
]


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """Converted from a file as the authors' training writes it."""
    folder = tmp_path_factory.mktemp("original")
    networks = originals.weights(SYSTEM)
    content = {
        "generator": {f"module.{k}": v for k, v in networks["generator"].items()},
        "image_discriminator": networks["image_discriminator"],
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}},
    }
    torch.save(content, folder / "model.pth")
    report = convert(folder / "model.pth", folder / "converted")
    assert "legacy_attention=True" in report
    assert "23,090,437 parameters" in report
    assert "entry of 'image_discriminator'" in report
    assert "entry of 'optimizer'" in report
    return load_network(folder / "converted")


@torch.no_grad()
def test_videos_equal_the_original(generator):
    golden = originals.golden(SYSTEM)
    appearance = golden["z_appearance"].flatten(1)
    motion = golden["z_motion"].flatten(2).mT
    video = generator(appearance, motion).movedim(2, 1)
    originals.assert_images(video[..., ::4, ::4], golden["video_20"])
    video = generator(appearance, motion[:, :1]).movedim(2, 1)
    originals.assert_images(video[..., ::2, ::2], golden["video_16"])


@torch.no_grad()
def test_logits_equal_the_original(generator):
    golden = originals.golden(SYSTEM)
    video = 20 * generator(
        golden["z_appearance"].flatten(1), golden["z_motion"].flatten(2).mT[:, :1]
    )
    for network, name, shown in (
        (g3an.VideoDiscriminator(), "video", video),
        (ImageDiscriminator(), "image", video[:, 3]),
    ):
        state = originals.weights(SYSTEM)[f"{name}_discriminator"]
        originals.load_discriminator(network, state, lambda key: key.removeprefix("net."))
        expected = golden[f"{name}_logits"]
        logits = network.eval()(shown)
        assert logits.shape == (2, 1)
        assert (logits[:, 0] - expected).abs().max() < 1e-4 * expected.std()


def test_parameter_counts():
    with torch.device("meta"):
        assert count(g3an.Generator()) == 23_090_437
        assert len(g3an.Generator().state_dict()) == 208
        assert count(g3an.VideoDiscriminator()) == 8_347_009
        assert count(ImageDiscriminator()) == 2_764_737


def test_weights_without_attention_and_strange_ones():
    state = originals.weights(SYSTEM)["generator"]
    plain = {k: v for k, v in state.items() if not k.startswith("fsa")}
    config, converted, dropped = g3an.from_original(plain)
    assert not config["attention"]
    assert not config["legacy_attention"]
    assert dropped == []
    g3an.Generator(**config).load_state_dict(converted)
    del plain["to_rgb.0.bias"]
    plain["extra.weight"] = torch.zeros(2)
    with pytest.raises(ValueError, match=r"unknown or misshapen \['extra.weight.*missing.*rgb"):
        g3an.from_original(plain)


@pytest.mark.parametrize("axis", ["time", "space"])
def test_attention_is_that_of_every_pixel_and_frame_by_itself(axis):
    attention = g3an.SelfAttention(8, axis, legacy=False).eval()
    x = torch.randn(2, 8, 3, 4, 5)
    with torch.no_grad():
        assert torch.equal(attention(x), x)  # gamma begins at 0
        attention.gamma.fill_(0.7)
        result = attention(x)
        q, k, v = (layer(x) for layer in (attention.query, attention.key, attention.value))
        expected = x.clone()
        for b in range(2):
            places = (
                [(slice(None), i, j) for i in range(4) for j in range(5)]
                if axis == "time"
                else [(t,) for t in range(3)]
            )
            for place in places:
                queries, keys, values = (h[b][:, *place].flatten(1) for h in (q, k, v))
                weights = (queries.T @ keys).exp()
                weights = weights / weights.sum(dim=1, keepdim=True)
                mixed = (values @ weights.T).reshape(x[b][:, *place].shape)
                expected[b][:, *place] += 0.7 * mixed
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(("size", "k", "frames"), [(64, 1, 16), (32, 2, 20), (32, 9, 48)])
def test_motion_steps_decide_the_length(size, k, frames):
    network = g3an.Generator(size, 0.03).eval()
    assert network.motion_steps(frames) == network.motion_steps(frames - 3) == k
    with torch.no_grad():
        video = network(torch.randn(2, 128), torch.randn(2, k, 10))
        assert video.shape == (2, frames, 3, size, size)
        assert video.abs().max() <= 1
        assert generate(network, Plan(frames=frames - 1), [0]).shape[1] == frames - 1


def test_appearance_is_still_and_motion_reaches_the_video():
    network = g3an.Generator(**NETWORK).double().eval()
    appearance, motion = torch.randn(1, 8).double(), torch.randn(1, 1, 5).double()
    for block in network.blocks:  # normalised by the statistics of this batch
        block.train()
    video = network(appearance.expand(2, -1), torch.cat([motion, -motion]))
    assert (video[0] - video[1]).abs().mean() > 1e-3
    spatial, _, _ = network.blocks[0](
        appearance[:, :, None, None, None].expand(2, -1, -1, -1, -1),
        torch.randn(2, 13, 1, 1, 1).double(),
        torch.randn(2, 5, 1, 1, 1).double(),
    )
    assert spatial.shape == (2, 32, 1, 4, 4)


@pytest.mark.parametrize("kind", ["2+1d", "3d"])
def test_video_discriminators_see_time(kind):
    """Clips of the same frames in another order are judged differently, one by one alike."""
    pair = g3an.discriminators(32, 16, 0.0625, kind).eval()
    with torch.no_grad():
        for layer in pair.modules():  # first weights of 0.02 hide what is far from the logit
            if hasattr(layer, "parametrizations"):
                torch.nn.init.normal_(layer.parametrizations.weight.original)
        video = torch.randn(2, 16, 3, 32, 32)
        logits = pair.video(video)
        assert logits.shape == (2, 1)
        assert (logits - pair.video(video.flip(1))).abs().min() > 1e-5
        torch.testing.assert_close(logits[1:], pair.video(video[1:]))
    with pytest.raises(ValueError, match="take 16"):
        pair(video[:, :8])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: g3an.Generator(48), "power of two"),
        (lambda: g3an.Generator(32, 0.0), "width=0.0"),
        (lambda: g3an.Generator(motion_noise=0), "motion_noise=0"),
        (lambda: g3an.Generator(attention=False, legacy_attention=True), "needs attention"),
        (lambda: g3an.Generator(**NETWORK)(torch.zeros(2, 9), torch.zeros(2, 1, 5)), r"\(B, 8\)"),
        (lambda: g3an.Generator(**NETWORK)(torch.zeros(2, 8), torch.zeros(2, 0, 5)), "1 or more"),
        (lambda: g3an.discriminators(kind="4d"), "'3d'"),
        (lambda: g3an.VideoDiscriminator(64, 12), "choose 13 or more"),
        (lambda: g3an.discriminators(64, 12, kind="3d"), "choose 16 or more"),
        (lambda: G3AN(**SMALL, adversarial=0.0), "nothing else trains this"),
        (lambda: G3AN(**SMALL).predict_step({"source": 0}, 0), "generate 16"),
    ],
)
def test_nonsense_is_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


# Training


def test_optimisers_are_the_originals():
    for optimizer in G3AN(**SMALL).configure_optimizers():
        group = optimizer.param_groups[0]
        assert (group["lr"], group["betas"]) == (2e-4, (0.5, 0.999))


def test_a_step_equals_one_written_plainly(tmp_path):
    """Discriminators first, then the generator against them as they are then, on one set."""
    L.seed_everything(4, verbose=False)
    # In float64, where biases before a batch norm have no gradient that Adam could make a step of.
    task = G3AN(**SMALL).double()
    generator = g3an.Generator(**NETWORK).double()
    judges = g3an.discriminators(32, 16, 0.0625).double()
    generator.load_state_dict(task.generator.state_dict())
    judges.load_state_dict(task.discriminator.state_dict())
    run = trainer(tmp_path, max_steps=1, precision="64-true")
    run.fit(task, Data())

    real = next(iter(Data().train_dataloader()))["video"].double()
    adam_g, adam_d = (
        torch.optim.Adam(net.parameters(), 2e-4, betas=(0.5, 0.999)) for net in (generator, judges)
    )
    torch.manual_seed(hash((4, 0, 0)))  # what the step's random numbers begin with
    fake = generator(
        torch.randn(4, 8, dtype=torch.float64), torch.randn(4, 1, 5, dtype=torch.float64)
    )

    def judged(video):
        moment = int(torch.randint(16, ()))
        return [judges.image(video[:, moment]), judges.video(video)]

    def bce(logits, target):
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    true, false = judged(real), judged(fake.detach())
    loss = sum(bce(x, 1.0) for x in true) + sum(bce(x, 0.0) for x in false)
    loss.backward()
    adam_d.step()
    generator_loss = sum(bce(x, 1.0) for x in judged(fake))
    generator_loss.backward()
    adam_g.step()
    logged = run.callback_metrics
    for side, expected in (("discriminator", loss), ("generator", generator_loss)):
        total = logged[f"{side}/adversarial_image"] + logged[f"{side}/adversarial_video"]
        torch.testing.assert_close(total.double(), expected.detach(), rtol=1e-6, atol=1e-6)
    for ours, plain in [(task.generator, generator), (task.discriminator, judges)]:
        for name, value in ours.state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[name], atol=1e-8, rtol=1e-6)
    # Without an average, what is shown is the generator itself, batch norms included.
    shown = task.generator_ema.network.state_dict()
    assert all(torch.equal(v, shown[k]) for k, v in task.generator.state_dict().items())


def test_resuming_equals_an_undisturbed_run(tmp_path):
    assert not differences(*fit_and_resume(lambda: G3AN(**SMALL, ema=0.9), tmp_path))


def test_scores_samples_and_predictions(tmp_path):
    from lmdvid.callbacks import SampleVideos, StoreScores
    from lmdvid.video import probe

    samples = SampleVideos(clips=3, output=str(tmp_path / "out" / "sample.mp4"))
    stored = StoreScores(str(tmp_path / "scores.json"))
    task = G3AN(**SMALL)
    run = trainer(tmp_path, callbacks=[samples, stored], limit_val_batches=1.0)
    (scores,) = run.validate(task, Data(), verbose=False)
    assert math.isfinite(scores["val/fd_effnetlite0_16f"])
    (scores,) = run.test(task, Data(), verbose=False)
    assert scores["test/clips"] == len(Squares())
    info = probe(tmp_path / "out" / "sample.mp4")
    assert (info.frames, info.width, info.height) == (16, 2 * 32, 3 * 32)
    parts = run.predict(task, Data())
    assert [key for part in parts for key in part["key"]] == [f"{i:06d}" for i in range(3)]
    assert parts[0]["video"].shape == (2, 16, 3, 32, 32)


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Weights and what is shown are the same in both, though batch norms see different clips."""
    assert not differences(*two_processes("test_g3an", "t.G3AN(**t.SMALL)", tmp_path))
