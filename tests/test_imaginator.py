"""ImaGINator: its networks against the original's values, its training step, its predictions."""

import lightning as L
import originals
import pytest
import torch
import torch.nn.functional as F
from generation import Data, Squares, differences, fit_and_resume, trainer, two_processes
from torch.utils.data import DataLoader

from lmdvid.callbacks import StoreScores
from lmdvid.generate import MOTION, Plan, noise
from lmdvid.networks import imaginator
from lmdvid.networks.dcgan import ImageDiscriminator, VideoDiscriminator, one_hot
from lmdvid.pretrained import convert, load_network
from lmdvid.tasks.imaginator import ImaGINator
from lmdvid.video import to_float, write_image

SYSTEM = "imaginator_64"
SMALL = {
    "size": 32,
    "classes": ["right", "left"],
    "width": 0.0625,
    "appearance": 6,
    "motion_noise": 5,
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*module.* in eval mode.*"),
]


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """Converted from the authors' file, which holds the generator alone."""
    folder = tmp_path_factory.mktemp("original")
    state = originals.weights(SYSTEM)["generator"]
    torch.save({f"module.{k}": v for k, v in state.items()}, folder / "model.pth")
    report = convert(folder / "model.pth", folder / "converted")
    assert "classes=['sadness', 'anger', 'surprise', 'disgust', 'happiness', 'fear']" in report
    assert "75,406,451 parameters" in report
    assert "left out" not in report
    return load_network(folder / "converted")


@torch.no_grad()
def test_videos_and_logits_equal_the_original(generator):
    golden = originals.golden(SYSTEM)
    label = golden["label"].argmax(dim=1)
    video = generator(golden["image"], golden["z"][:, None], label)
    originals.assert_images(video.movedim(2, 1)[..., ::2, ::2], golden["video"])

    def names(key):
        side, layer = key.split(".")
        return f"stem.{layer}" if side == "net1" else f"body.{layer}"

    judge = VideoDiscriminator(classes=6)
    originals.load_discriminator(judge, originals.weights(SYSTEM)["video_discriminator"], names)
    images = ImageDiscriminator()
    state = originals.weights(SYSTEM)["image_discriminator"]
    originals.load_discriminator(images, state, lambda key: key.removeprefix("net."))
    for logits, expected in (
        (judge.eval()(20 * video, label), golden["video_logits"]),
        (images.eval()(20 * video[:, 5]), golden["image_logits"]),
    ):
        assert (logits[:, 0] - expected).abs().max() < 1e-4 * expected.std()


def test_parameter_counts():
    with torch.device("meta"):
        assert count(imaginator.Generator()) == 75_406_451
        assert count(VideoDiscriminator(classes=6)) == 11_088_833


def test_converted_arguments_come_from_the_weights():
    with torch.device("meta"):
        network = imaginator.Generator(**SMALL)
        theirs = {}
        for name, value in network.state_dict().items():
            part, rest = name.split(".", 1)
            if part == "encoder":
                number, rest = rest.removeprefix("blocks.").split(".", 1)
                number, rest = (
                    (4, f"0.{rest}") if number == "appearance" else (int(number) + 1, rest)
                )
                key = f"enc.b{number}.{rest}"
            elif part == "rgb":
                key = f"dec.to_rgb.conv.{rest}"
            else:
                number, rest = rest.split(".", 1)
                key = f"dec.block{int(number) + 1}.conv.{rest}"
            theirs[f"a.b.{key}"] = value
        theirs["c.weight"] = torch.zeros(1)
    assert imaginator.matches(theirs)
    config, converted, dropped = imaginator.from_original(theirs)
    assert config == {**network.config, "classes": ["0", "1"]}
    assert converted.keys() == network.state_dict().keys()
    assert dropped == ["c.weight"]
    del theirs["a.b.enc.b1.0.bias"]
    with pytest.raises(ValueError, match=r"not the original ImaGINator.*missing \['encoder"):
        imaginator.from_original(theirs)


@pytest.mark.parametrize(("size", "frames"), [(32, 16), (64, 32)])
def test_frames_double_with_pixels_and_all_inputs_count(size, frames):
    network = imaginator.Generator(**{**SMALL, "size": size}).train()
    image, z = torch.rand(4, 3, size, size) * 2 - 1, torch.randn(4, 1, 5)
    label = torch.tensor([0, 0, 1, 1])
    with torch.no_grad():
        video = network(image, z, label)
        assert video.shape == (4, frames, 3, size, size)
        assert video.abs().max() <= 1
        for other in (
            network(image.flip(3), z, label),
            network(image, -z, label),
            network(image, z, 1 - label),
        ):
            assert (video - other).abs().mean() > 1e-4


def test_the_class_is_told_to_the_video_discriminator_alone():
    judges = imaginator.discriminators(32, 2, 0.0625).eval()
    with torch.no_grad():
        for layer in judges.modules():
            if hasattr(layer, "parametrizations"):
                torch.nn.init.normal_(layer.parametrizations.weight.original)
        video = torch.randn(2, 16, 3, 32, 32)
        logits = []
        for label in ([0, 0], [0, 1]):
            torch.manual_seed(1)
            logits.append(judges(video, torch.tensor(label)))
    assert torch.equal(logits[0]["image"], logits[1]["image"])
    assert torch.equal(logits[0]["video"][0], logits[1]["video"][0])
    assert not torch.equal(logits[0]["video"][1], logits[1]["video"][1])


def test_classes_by_name_and_number():
    with torch.device("meta"):
        network = imaginator.Generator()
    assert network.class_number("happiness") == network.class_number("4") == 4
    for name in ("joy", "6", "-1"):
        with pytest.raises(ValueError, match=rf"no class '{name}': choose from sadness, anger"):
            network.class_number(name)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: imaginator.Generator(48), "power of two"),
        (lambda: imaginator.Generator(classes=[]), "one or more"),
        (lambda: imaginator.Generator(classes=["a", "a"]), "each once"),
        (lambda: imaginator.Generator(appearance=0), "appearance=0"),
        (lambda: one_hot(torch.tensor([2]), 2), "there are 2 classes"),
        (lambda: one_hot(torch.zeros(2), 2), "whole numbers"),
        (lambda: ImaGINator(**SMALL).generator_step({"video": 0}), "data_modules.mug.MUG"),
        (
            lambda: ImaGINator(**SMALL).generator_step(
                {"video": torch.zeros(2, 8, 3, 32, 32), "label": torch.tensor([0, 1])}
            ),
            "at 32 px ImaGINator makes 16",
        ),
        (
            lambda: imaginator.Generator(**SMALL).sample_codes(
                torch.zeros(1, 3, 64, 64), torch.zeros(1, 1, 5), torch.tensor([0])
            ),
            r"takes \(B, 3, 32, 32\)",
        ),
    ],
)
def test_nonsense_is_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


# Training


def test_a_step_equals_one_written_plainly(tmp_path):
    """The generator first, with 100 L1; then both discriminators on the same videos."""
    L.seed_everything(4, verbose=False)
    task = ImaGINator(**SMALL).double()  # see G3AN's test
    generator = imaginator.Generator(**SMALL).double()
    judges = imaginator.discriminators(32, 2, 0.0625).double()
    generator.load_state_dict(task.generator.state_dict())
    judges.load_state_dict(task.discriminator.state_dict())
    run = trainer(tmp_path, max_steps=1, precision="64-true")
    run.fit(task, Data())

    batch = next(iter(Data().train_dataloader()))
    real, label = batch["video"].double(), batch["label"]
    adam_g, adam_d = (
        torch.optim.Adam(net.parameters(), 2e-4, betas=(0.5, 0.999)) for net in (generator, judges)
    )
    torch.manual_seed(hash((4, 0, 0)))  # what the step's random numbers begin with
    fake = generator(real[:, 0], torch.randn(4, 1, 5, dtype=torch.float64), label)

    def judged(video):
        moment = int(torch.randint(16, ()))
        return [judges.image(video[:, moment]), judges.video(video, label)]

    def bce(logits, target):
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    generator_loss = 100 * (fake - real).abs().mean() + sum(bce(x, 1.0) for x in judged(fake))
    generator_loss.backward()
    adam_g.step()
    adam_d.zero_grad()
    loss = sum(bce(x, 1.0) for x in judged(real))
    loss = loss + sum(bce(x, 0.0) for x in judged(fake.detach()))
    loss.backward()
    adam_d.step()
    for side, expected in (("discriminator", loss), ("generator", generator_loss)):
        logged = [v for k, v in run.callback_metrics.items() if k.startswith(f"{side}/")]
        total = torch.stack(logged).sum().double()
        torch.testing.assert_close(total, expected.detach(), rtol=1e-6, atol=1e-6)
    for ours, plain in [(task.generator, generator), (task.discriminator, judges)]:
        for name, value in ours.state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[name], atol=1e-8, rtol=1e-6)


def test_resuming_equals_an_undisturbed_run(tmp_path):
    assert not differences(*fit_and_resume(lambda: ImaGINator(**SMALL, ema=0.9), tmp_path))


def test_scores_are_of_clips_imagined_from_their_first_frames(tmp_path):
    task = ImaGINator(**SMALL)
    stored = StoreScores(str(tmp_path / "scores.json"), ["reconstruction"])
    run = trainer(tmp_path, callbacks=[stored])
    (scores,) = run.test(task, Data(), verbose=False)
    real = torch.stack([Squares()[i]["video"] for i in range(8)])
    z = torch.stack([noise(0, MOTION, i, [1, 5]) for i in range(8)])
    with torch.no_grad():
        fake = task.generator_ema.network(real[:, 0], z, torch.arange(8) % 2)
    expected = 0.5 * (fake - real)[:, 1:].abs().mean().item()
    assert scores["test/l1"] == pytest.approx(expected, rel=1e-5)
    assert scores["test/clips"] == 8
    whole = 0.5 * (fake - real).abs().mean().item()
    assert scores["test/reconstruction_l1"] == pytest.approx(whole, abs=0.003)  # of bytes
    assert {"test/psnr", "test/ssim", "test/copy_psnr"} <= set(scores)


def test_predictions_of_a_picture_and_of_pairs(tmp_path):
    picture = (torch.rand(40, 32, 3) * 255).byte()
    write_image(tmp_path / "a.png", picture)
    source = to_float(picture[4:36])
    plan = Plan(image=str(tmp_path / "a.png"), label="left", seed=3)
    task = ImaGINator(**SMALL, prediction=plan)
    parts = trainer(tmp_path).predict(task, Data())
    made = torch.cat([part["video"] for part in parts])
    z = torch.stack([noise(3, MOTION, i, [1, 5]) for i in range(3)])
    network = task.generator_ema.network
    with torch.no_grad():
        expected = network(source.expand(3, -1, -1, -1), z, torch.ones(3, dtype=torch.int64))
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)

    pairs = DataLoader([{"source": source, "driving": source[None], "key": "a__b"}], batch_size=1)
    (part,) = trainer(tmp_path).predict(task, pairs)
    assert part["key"] == ["a__b_left"]
    torch.testing.assert_close(part["video"], expected[:1], atol=1e-5, rtol=1e-4)
    task.prediction = Plan()
    (part,) = trainer(tmp_path).predict(task, pairs)
    assert part["key"] == ["a__b_right", "a__b_left"]
    assert not torch.equal(part["video"][0], part["video"][1])


@pytest.mark.slow
def test_two_processes(tmp_path):
    states = two_processes("test_imaginator", "t.ImaGINator(**t.SMALL)", tmp_path)
    assert not differences(*states)
