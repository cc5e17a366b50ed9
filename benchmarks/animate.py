"""Time per frame of animation at 256 px on a CPU, against a plain form; memory of a long clip.

    python benchmarks/animate.py [--rounds 15] [--frames 4]

The reference computes what the original script does, as it does it, a frame at a time: modulated
convolutions as grouped ones with a weight for each sample, low-pass filters on feature maps
reshaped to single channels, the dictionary's QR at every frame, and the source encoded again for
every frame. They run in turn, in one process, on the same random weights: the reference in float32,
`Animator` in float32 and with its default settings. First their pictures are compared: in float64,
where rounding cannot hide a difference, in float32, and float32 with the default dtype.

The floor is the time that the arithmetic of a frame takes at the rate of this machine's best
convolution (3x3, 128 channels, 128 px, channels last), measured in the same process.

The first frame is timed from the start of `lmdvid animate` to its end, for one driving picture and
a small network. On trained weights, those of `puppets` in the box at 128 px, bfloat16 is judged:
16 held-out puppets each in the motion of another, 256 frames, beside float32 and beside what was
drawn; as it is, and with all its 3x3 convolutions in rows (lmdvid/ops/winograd.py), for which this
network has too few channels. The same network and that of 256 px are also timed compiled, by turns
with themselves as they are; their compilation is not in it. The memory is what a process grows by,
from the loaded network to its peak, while a 64 px network animates a clip of 3,000 frames from file
to file. Writes benchmarks/results/animate.json.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as `lmdvid` does; for all alike

import torch
import torch.nn.functional as F
from demo import processor
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lmdvid.animate import Animator
from lmdvid.networks.lia import Generator
from lmdvid.ops import winograd
from lmdvid.pretrained import load_network, save_network
from lmdvid.video import VideoWriter, write_image

RESULT = Path(__file__).resolve().parent / "results" / "animate.json"
SIZE = 256
EXACT = 1e-8  # largest difference in float64
CLOSE = 1e-4  # mean difference in float32, in which rounding moves the flow
JUDGED = 1e-2  # mean difference of bfloat16 with trained weights


class Reference:
    """LIA on the weights of a `Generator`, written the plain way; one pair of pictures a call."""

    def __init__(self, network: Generator) -> None:
        # The plain layout too, which `Animator` changes.
        self.weights = {k: v.clone().contiguous() for k, v in network.state_dict().items()}
        self.scales = len(network.synthesis.scales)
        self.align_corners = network.config["align_corners"]
        taps = network.synthesis.constant.new_tensor([1.0, 3.0, 3.0, 1.0])
        self.kernel = taps[:, None] * taps / taps.sum() ** 2

    def __call__(self, source: Tensor, driving: Tensor, start: Tensor) -> Tensor:
        """Relative motion from `start`, the magnitudes (1, N) of the first driving frame."""
        code, features = self.encode(source)
        alpha = self.magnitudes(code) + self.magnitudes(self.encode(driving)[0]) - start
        q, r = torch.linalg.qr(self.weights["navigator.weight"])
        basis = q * r.diagonal().sign()
        return self.synthesise(code + (torch.diag_embed(alpha) @ basis.T).sum(1), features)

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.convolve(image, "encoder.pyramid.stem")
        features = [x]
        for i in range(self.scales):
            block = f"encoder.pyramid.blocks.{i}."
            y = self.convolve(self.convolve(x, f"{block}conv1"), f"{block}conv2", down=True)
            x = (y + self.convolve(x, f"{block}skip", down=True)) / math.sqrt(2)
            features.append(x)
        code = F.conv2d(x, self.scaled("encoder.code.weight")).flatten(1)
        return code, features[-2::-1]

    def magnitudes(self, code: Tensor) -> Tensor:
        for i in range(5):
            code = self.linear(code, f"encoder.motion.{i}")
        return code

    def synthesise(self, w: Tensor, features: list[Tensor]) -> Tensor:
        constant = self.weights["synthesis.constant"].repeat(len(w), 1, 1, 1)
        h = self.styled(constant, w, "synthesis.conv")
        flow = rgb = None
        for i, feature in enumerate(features):
            scale = f"synthesis.scales.{i}."
            h = self.styled(self.styled(h, w, f"{scale}up", up=True), w, f"{scale}conv")
            o = self.modulated(h, w, f"{scale}flow.conv", demodulate=False)
            o = o + self.weights[f"{scale}flow.bias"].view(1, 3, 1, 1)
            flow = o if flow is None else o + self.upfirdn(flow, up=2, pad=(2, 1), gain=4)
            side = torch.linspace(-1, 1, h.shape[-1], dtype=h.dtype, device=h.device)
            grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
            grid = grid + flow[:, :2].tanh().permute(0, 2, 3, 1)
            mask = flow[:, 2:].sigmoid()
            warped = mask * F.grid_sample(feature, grid, align_corners=self.align_corners)
            h = warped + (1 - mask) * h
            colours = self.convolve(warped, f"{scale}rgb.conv")
            colours = colours + self.weights[f"{scale}rgb.bias"].view(1, 3, 1, 1)
            rgb = colours if rgb is None else colours + self.upfirdn(rgb, up=2, pad=(2, 1), gain=4)
        return rgb

    def scaled(self, name: str) -> Tensor:
        weight = self.weights[name]
        return weight / math.sqrt(weight[0].numel())

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.scaled(f"{name}.weight"), self.weights[f"{name}.bias"])

    def activate(self, x: Tensor, name: str) -> Tensor:
        bias = self.weights[f"{name}.bias"].view(1, -1, 1, 1)
        return math.sqrt(2) * F.leaky_relu(x + bias, 0.2)

    def convolve(self, x: Tensor, name: str, down: bool = False) -> Tensor:
        weight = self.scaled(f"{name}.weight")
        size = weight.shape[-1]
        if down:
            pad = (size + 1) // 2
            x = F.conv2d(self.upfirdn(x, up=1, pad=(pad, pad), gain=1), weight, stride=2)
        else:
            x = F.conv2d(x, weight, padding=size // 2)
        return self.activate(x, name) if f"{name}.bias" in self.weights else x

    def styled(self, x: Tensor, w: Tensor, name: str, up: bool = False) -> Tensor:
        return self.activate(self.modulated(x, w, f"{name}.conv", up=up), name)

    def modulated(
        self, x: Tensor, w: Tensor, name: str, up: bool = False, demodulate: bool = True
    ) -> Tensor:
        batch, inputs, height, width = x.shape
        style = self.linear(w, f"{name}.modulation").view(batch, 1, inputs, 1, 1)
        weight = self.scaled(f"{name}.weight") * style
        if demodulate:
            weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        outputs, size = weight.shape[1], weight.shape[-1]
        x = x.view(1, batch * inputs, height, width)
        if up:
            weight = weight.transpose(1, 2).reshape(batch * inputs, outputs, size, size)
            x = F.conv_transpose2d(x, weight, stride=2, groups=batch)
            x = x.view(batch, outputs, *x.shape[-2:])
            return self.upfirdn(x, up=1, pad=(1, 1), gain=4)
        weight = weight.view(batch * outputs, inputs, size, size)
        x = F.conv2d(x, weight, padding=size // 2, groups=batch)
        return x.view(batch, outputs, height, width)

    def upfirdn(self, x: Tensor, up: int, pad: tuple[int, int], gain: float) -> Tensor:
        """Zeros between the pixels, padding, the low-pass filter, channel by channel."""
        batch, channels, height, width = x.shape
        x = x.reshape(-1, 1, height, 1, width, 1)
        x = F.pad(x, (0, up - 1, 0, 0, 0, up - 1)).view(-1, 1, height * up, width * up)
        x = F.conv2d(F.pad(x, (*pad, *pad)), (gain * self.kernel).view(1, 1, 4, 4))
        return x.view(batch, channels, *x.shape[-2:])


def difference_of(network: Generator, source: Tensor, driving: Tensor) -> Tensor:
    """How far the pictures (T, 3, H, W) of the two are apart."""
    reference, start = Reference(network), network.encode_motion(driving[:1])
    expected = torch.cat([reference(source[None], frame[None], start) for frame in driving])
    picture, codes = network.encode_source(source[None]), network.encode_motion(driving)
    made = network.render(picture, codes, start, "relative")
    # As it runs below: one sample alone takes another way through the network.
    alone = [network.render(picture, code[None], start, "relative") for code in codes]
    return torch.maximum((made - expected).abs(), (torch.cat(alone) - expected).abs())


def trained() -> dict[str, object]:
    """How far bfloat16 and float32 are apart, and each from the truth, on held-out puppets."""
    from data_modules.puppets import Puppets  # here, since gpu.py imports this on bare machines

    with tempfile.TemporaryDirectory() as folder:
        data = Puppets(
            folder, size=128, train_identities=1, test_identities=16, clip_frames=16,
            eval_clips=None, eval_frames=None,
        )  # fmt: skip
        data.prepare_data()
        data.setup("test")
        clips = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
    made, decibels = {}, {}
    truth = torch.cat([clip["cross_truth"][0] for clip in clips])
    for dtype in (torch.float32, torch.bfloat16):
        animator, name = Animator.from_pretrained("puppets", "cpu", dtype), str(dtype)[6:]
        frames = [
            animator.animate(clip["video"][0, 0], clip["cross_driving"][0], "absolute")
            for clip in clips
        ]
        made[name] = torch.cat(frames).clamp(-1, 1)
        errors = (made[name] - truth).square().mean((1, 2, 3))
        decibels[name] = round((10 * (4 / errors).log10()).mean().item(), 2)
    apart = (made["bfloat16"] - made["float32"]).abs()
    assert apart.mean() < JUDGED, f"with trained weights bfloat16 is {apart.mean():.2e} off"
    return {
        "setting": "puppets in the box, 128 px, held-out puppets, absolute, pixels in [-1, 1]",
        "frames": len(truth),
        "mean": apart.mean().item(),
        "mean_of_the_worst_frame": apart.mean((1, 2, 3)).max().item(),
        "largest": apart.max().item(),
        "psnr_to_the_truth": decibels,
    }


@contextmanager
def in_rows() -> Iterator[None]:
    """All 3x3 convolutions of as many rows as are computed together, however few channels."""
    before = winograd.least_height, winograd.least_channels
    winograd.least_height, winograd.least_channels = winograd.ROWS, 1
    try:
        yield
    finally:
        winograd.least_height, winograd.least_channels = before


def compiled(network: nn.Module, dtype: torch.dtype, rounds: int) -> dict[str, object]:
    """Milliseconds per frame as it is and compiled, by turns; seconds that compiling takes."""
    animators = [Animator(network, dtype, compile=compile) for compile in (False, True)]
    size, frames = animators[0].size, max(4, animators[0].batch_size)
    source, *driving = torch.rand(frames + 1, 3, size, size) * 2 - 1
    streams = [
        animator.stream(source, (frame for _ in iter(int, 1) for frame in driving))
        for animator in animators
    ]

    def run(stream: Iterator[Tensor], batches: int = 1) -> float:
        return seconds(lambda: [next(stream) for _ in range(batches * frames)])

    # Two batches, which compile, and another two.
    first, second = ([run(stream, 2) for _ in range(2)] for stream in streams)
    plain, fast = zip(*([run(stream) for stream in streams] for _ in range(rounds)), strict=True)
    ratios = [one / other for one, other in zip(plain, fast, strict=True)]
    return {
        "size": size,
        "dtype": str(dtype)[6:],
        "seconds_to_compile": round(second[0] - first[0], 1),
        "milliseconds_per_frame": round(1000 * statistics.median(plain) / frames, 2),
        "milliseconds_per_frame_compiled": round(1000 * statistics.median(fast) / frames, 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_lowest": round(min(ratios), 2),
        "ratio_highest": round(max(ratios), 2),
    }


def growth(folder: Path) -> float:
    """Megabytes by which a process grows that animates `clip.mp4`; Linux."""
    animator = Animator(Generator(64, width=0.25).eval())
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    animator.animate_file(folder / "face.png", folder / "clip.mp4", folder / "out.mp4")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000 - before / 1e6


def memory(frames: int) -> float:
    side = torch.arange(256)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with VideoWriter(folder / "clip.mp4", 25, options={"preset": "ultrafast"}) as writer:
            for number in range(frames):
                wave = 127.5 + 127.5 * torch.sin((side + 5 * number) / 20)
                frame = wave[:, None, None].expand(256, 256, 3).to(torch.uint8)
                writer.write(frame)
        write_image(folder / "face.png", frame)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(growth, (folder,))


def first_frame() -> float:
    """Seconds that `lmdvid animate` takes from start to end for one small picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_network(Generator(64, width=0.25), folder / "small")
        for picture in ("source.png", "driving.png"):
            write_image(folder / picture, torch.randint(256, (64, 64, 3), dtype=torch.uint8))
        command = [sys.executable, "-m", "lmdvid", "animate", "--device", "cpu"]
        command += ["--source", "source.png", "--driving", "driving.png"]
        command += ["--checkpoint", "small", "--output", "out.png"]
        return seconds(lambda: subprocess.run(command, cwd=folder, check=True))


def gigaflops() -> float:
    """Arithmetic of one frame in the shared-weight form: encode the driver, render."""
    with FakeTensorMode():  # shapes without values
        network = Generator(SIZE).requires_grad_(False)
        source = network.encode_source(torch.zeros(1, 3, SIZE, SIZE))
        with FlopCounterMode(display=False) as counter:
            codes = network.encode_motion(torch.zeros(1, 3, SIZE, SIZE))
            network.render(source, codes, None, "absolute")
    return counter.get_total_flops() / 1e9


def rate(dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> float:
    """GFLOP/s of this machine's best convolution."""
    layout = torch.channels_last
    x = torch.randn(1, 128, 128, 128, dtype=dtype).to(memory_format=layout)
    weight = torch.randn(128, 128, 3, 3, dtype=dtype).to(memory_format=layout)
    times = [seconds(lambda: F.conv2d(x, weight, padding=1), clock) for _ in range(30)]
    return 2 * 9 * 128**4 / min(times) / 1e9


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    work()
    return clock() - start


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--frames", type=int, default=4, help="frames a round")
    parser.add_argument("--clip", type=int, default=3000, help="frames of the long clip")
    options = parser.parse_args()
    starts = [first_frame() for _ in range(3)]
    grown = memory(options.clip)
    judged = trained()
    with in_rows():
        judged["in_rows"] = trained()

    torch.manual_seed(0)
    network = Generator(SIZE, align_corners=False).eval()
    coarse = torch.rand(options.frames + 1, 3, 16, 16) * 2 - 1
    source, *driving = F.interpolate(coarse, SIZE, mode="bicubic").clamp(-1, 1)
    driving = torch.stack(driving)

    exactly = difference_of(network.double(), source.double(), driving[:2].double())
    assert exactly.max() < EXACT, f"in float64 the two differ by {exactly.max():.2e}"
    closely = difference_of(network.float(), source, driving[:2])
    assert closely.mean() < CLOSE, f"in float32 the two differ by {closely.mean():.2e} on average"

    work = gigaflops()
    animators = {"float32": Animator(network, torch.float32), "default": Animator(network)}
    made = {name: a.animate(source, driving) for name, a in animators.items()}
    default = (made["default"] - made["float32"]).abs()

    reference = Reference(network)
    start = network.encode_motion(driving[:1])
    # The steady state: the source was encoded, and every batch is full.
    streams = {
        name: animator.stream(source, (frame for _ in iter(int, 1) for frame in driving))
        for name, animator in animators.items()
    }

    def plain() -> Tensor:
        return torch.cat([reference(source[None], frame[None], start) for frame in driving])

    def ours(name: str) -> Tensor:
        return torch.stack([next(streams[name]) for _ in range(options.frames)])

    contenders = {"reference": plain} | {n: lambda n=n: ours(n) for n in streams}
    for contender in contenders.values():  # memory and caches are warm from here on
        contender()
    rounds = [{n: seconds(run) for n, run in contenders.items()} for _ in range(options.rounds)]

    dtypes = (torch.float32, torch.bfloat16)
    compilations = [
        compiled(load_network("puppets"), dtype, 10 * options.rounds) for dtype in dtypes
    ]
    compilations += [compiled(network, dtype, options.rounds) for dtype in dtypes]

    def figures(name: str) -> dict[str, object]:
        dtype = animators[name].dtype
        ratios = [round_["reference"] / round_[name] for round_ in rounds]
        milliseconds = 1000 * statistics.median(r[name] for r in rounds) / options.frames
        fastest = rate(dtype)
        return {
            "dtype": str(dtype).removeprefix("torch."),
            "batch_size": animators[name].batch_size,
            "milliseconds_per_frame": round(milliseconds, 1),
            "ratio": round(statistics.median(ratios), 2),
            "ratio_lowest": round(min(ratios), 2),
            "ratio_highest": round(max(ratios), 2),
            "convolution_gflops_per_second": round(fastest),
            "floor_milliseconds_per_frame": round(1000 * work / fastest, 1),
            "fraction_of_floor": round(1000 * work / fastest / milliseconds, 2),
        }

    milliseconds = 1000 * statistics.median(r["reference"] for r in rounds) / options.frames
    result = {
        "benchmark": "animate",
        "setting": f"LIA, {SIZE} px, relative, CPU, random weights",
        "date": date.today().isoformat(),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "gpu": None,
        },
        "versions": {p: version(p) for p in ("lmdvid", "torch")}
        | {"python": platform.python_version()},
        "rounds": options.rounds,
        "frames_per_round": options.frames,
        "gflop_per_frame": round(work, 1),
        "reference_milliseconds_per_frame": round(milliseconds, 1),
        **{name: figures(name) for name in animators},
        "difference_float64": {"largest": exactly.max().item(), "mean": exactly.mean().item()},
        "difference_float32": {"largest": closely.max().item(), "mean": closely.mean().item()},
        "difference_default": {"largest": default.max().item(), "mean": default.mean().item()},
        "difference_bfloat16_trained": judged,
        "compiled": compilations,
        "first_frame_seconds": round(statistics.median(starts), 2),
        "long_clip": {"frames": options.clip, "size": 64, "memory_growth_mb": round(grown)},
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
