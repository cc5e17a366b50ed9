"""Decoding on a GPU: who is taken, what it is not given, and that batches are those of the CPU.

Without a GPU, decoders that decode on the CPU stand in for those that would decode on one.
"""

import logging
import os
import shutil
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import ModuleType

import av
import pytest
import torch

from data_modules import base
from data_modules.base import DataError
from data_modules.clips import Clips
from data_modules.puppets import Puppets
from lmdvid import doctor
from lmdvid.video import (
    GpuDecoder,
    NoGpuDecoderError,
    VideoReadError,
    decord_backend,
    find_gpu_decoder,
    gpu,
    pyav_backend,
    read_clip,
    torchcodec_backend,
    write_image,
    write_video,
)
from lmdvid.video import read as reading
from lmdvid.video.scan import ScannedClip, look

GPU = torch.device("cuda", 0)
BACKENDS = {"decord": decord_backend, "torchcodec": torchcodec_backend, "pyav": pyav_backend}
needs_decord = pytest.mark.skipif(not decord_backend.is_installed(), reason="decord is absent")


def moving(frames: int, size: tuple[int, int] = (64, 96), seed: int = 0) -> torch.Tensor:
    """A ramp of colours that moves and a square whose brightness is the frame's number."""
    height, width = size
    video = torch.zeros(frames, height, width, 3, dtype=torch.uint8)
    for n in range(frames):
        video[n, ..., 0] = (torch.arange(width) * 200 // width + 2 * n + 20 * seed) % 256
        video[n, ..., 1] = (torch.arange(height) * 200 // height)[:, None] + 20
        video[n, ..., 2] = 100
        video[n, : height // 2, : width // 2] = 8 * n + 16
    return video


def on_cpu(path: Path, encoded: bytes, indices: list[int], gpu: int | None) -> torch.Tensor:
    """Stands in for `read_on_gpu`: from the bytes alone."""
    opened = lambda: pyav_backend._opened(path, encoded)  # noqa: E731
    return pyav_backend._read(path, indices, opened, pyav_backend._converter())


@pytest.fixture(autouse=True)
def _nothing_remembered():
    for function in (gpu.gpu_obstacle, reading._gpu_decoder):
        function.cache_clear()
    yield
    for function in (gpu.gpu_obstacle, reading._gpu_decoder):
        function.cache_clear()


@pytest.fixture
def decoders(monkeypatch):
    """Give each decoder an obstacle, or None and a stand-in for its decoding."""

    def set_up(**obstacles: str | None) -> None:
        for name, backend in BACKENDS.items():
            obstacle = obstacles.get(name, "not asked for")
            monkeypatch.setattr(backend, "cuda_obstacle", lambda _, found=obstacle: found)
            monkeypatch.setattr(backend, "read_on_gpu", on_cpu)

    return set_up


# Who decodes


@pytest.mark.parametrize(
    ("obstacles", "taken", "said"),
    [
        ({"decord": None}, "decord", "decord decodes on cuda:0"),
        (
            {"decord": "has no CUDA", "torchcodec": None, "pyav": None},
            "torchcodec",
            "torchcodec decodes on cuda:0 (decord: has no CUDA)",
        ),
        (
            {"decord": "has no CUDA", "torchcodec": "0.13 is too old", "pyav": None},
            "pyav",
            "pyav decodes on cuda:0 (decord: has no CUDA; torchcodec: 0.13 is too old)",
        ),
        (
            {"decord": "a", "torchcodec": "b", "pyav": "c"},
            None,
            "the CPU decodes, since nothing does on cuda:0 (decord: a; torchcodec: b; pyav: c)",
        ),
    ],
)
def test_auto_takes_the_first_that_works_and_says_why_not_the_others(
    decoders, obstacles, taken, said
):
    decoders(**obstacles)
    decoder, explanation = find_gpu_decoder(GPU)
    assert explanation == said
    assert decoder == (GpuDecoder(taken, GPU) if taken else None)


def test_one_that_is_insisted_on_is_taken_or_missed(decoders):
    decoders(decord="built without CUDA", pyav=None)
    assert find_gpu_decoder(GPU, "pyav")[0] == GpuDecoder("pyav", GPU)
    with pytest.raises(NoGpuDecoderError) as error:
        find_gpu_decoder(GPU, "decord")
    for word in ("cuda:0: built without CUDA", "-DUSE_CUDA=ON", "FFmpeg 4", "backend='auto'"):
        assert word in str(error.value)
    decoders(pyav="no driver")
    with pytest.raises(NoGpuDecoderError, match=r"no driver.*libnvcuvid"):
        find_gpu_decoder(torch.device("cuda", 1), "pyav")


def test_a_device_that_is_no_gpu_is_said_so(decoders):
    decoders(decord=None, torchcodec=None, pyav=None)
    decoder, explanation = find_gpu_decoder(torch.device("cpu"))
    assert decoder is None
    assert "decord: cpu is no NVIDIA GPU" in explanation


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda frames: frames[[1, 1, 2]], "gives wrong frames (off by"),
        (lambda frames: frames // 2, "gives wrong frames (off by"),
        (lambda frames: 1 / 0, "fails: division by zero"),
    ],
)
def test_a_decoder_is_tried_out_before_it_is_trusted(decoders, monkeypatch, change, reason):
    decoders(decord=None, torchcodec=None)
    monkeypatch.setattr(decord_backend, "read_on_gpu", lambda *given: change(on_cpu(*given)))
    decoder, explanation = find_gpu_decoder(GPU)
    assert decoder is not None
    assert decoder.name == "torchcodec"
    assert f"decord: {reason}" in explanation


def test_probes_of_this_machine_name_the_obstacle():
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert "no" in (decord_backend.cuda_obstacle(0) or "")
    assert pyav_backend.cuda_obstacle(0)
    with pytest.raises(NoGpuDecoderError, match=r"decord.*-DUSE_CUDA=ON"):
        find_gpu_decoder(GPU, "decord")


def fake_torchcodec(monkeypatch, version: str, fallback: str = "") -> None:
    class VideoDecoder:
        def __init__(self, source, dimension_order, device):
            assert (dimension_order, device) == ("NHWC", "cuda:0")
            self.frames = torch.stack(list(pyav_frames(source)))
            self.cpu_fallback = fallback

        def __len__(self):
            return len(self.frames)

        def get_frames_at(self, indices):
            return type("FrameBatch", (), {"data": self.frames[indices]})

    package, module = ModuleType("torchcodec"), ModuleType("torchcodec.decoders")
    module.VideoDecoder = VideoDecoder  # type: ignore[attr-defined]
    package.decoders = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    monkeypatch.setattr(torchcodec_backend, "version", lambda _: version)


def pyav_frames(encoded: bytes):
    with av.open(BytesIO(encoded)) as container:
        for frame in container.decode(video=0):
            yield torch.from_numpy(frame.to_ndarray(format="rgb24"))


def test_torchcodec_is_taken_from_017_on_and_not_where_it_would_use_the_cpu(monkeypatch, tmp_path):
    monkeypatch.setattr(decord_backend, "cuda_obstacle", lambda _: "has no CUDA")
    monkeypatch.setattr(pyav_backend, "cuda_obstacle", lambda _: "no driver")
    fake_torchcodec(monkeypatch, "0.13.0")
    assert "torchcodec: 0.13.0 is older than 0.17" in find_gpu_decoder(GPU)[1]
    gpu.gpu_obstacle.cache_clear()
    fake_torchcodec(monkeypatch, "0.17.0+cu130", fallback="no libnvcuvid")
    assert "would use the CPU (no libnvcuvid)" in find_gpu_decoder(GPU)[1]
    gpu.gpu_obstacle.cache_clear()
    fake_torchcodec(monkeypatch, "0.17.0+cu130")
    decoder, _ = find_gpu_decoder(GPU)
    assert decoder == GpuDecoder("torchcodec", GPU)
    write_video(tmp_path / "a.mp4", moving(20), 25)
    encoded = (tmp_path / "a.mp4").read_bytes()
    seen = decoder.read("a.mp4", encoded, [5, 2, 5])
    assert torch.equal(seen, read_clip(tmp_path / "a.mp4", [5, 2, 5]))
    with pytest.raises(VideoReadError, match=r"a.mp4: frame 20 of 20"):
        decoder.read("a.mp4", encoded, [20])
    with pytest.raises(ValueError, match="indices is empty"):
        decoder.read("a.mp4", encoded, [])


def test_torchcodec_that_cannot_be_imported_gives_its_reason(monkeypatch):
    monkeypatch.setattr(torchcodec_backend, "version", lambda _: "0.17.0")
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    assert "0.17.0 cannot be imported: " in (torchcodec_backend.cuda_obstacle(0) or "")


def test_doctor_says_what_can_decode_on_a_gpu(decoders):
    decoders(decord="sees no GPU", torchcodec=None)
    found = {finding.subject: finding for finding in doctor.video()}
    assert all(found[f"decode on a GPU with {name}"].ok for name in BACKENDS)
    assert found["decode on a GPU with decord"].text == "not possible: decord sees no GPU"
    assert found["decode on a GPU with torchcodec"].text == "works"


# What a decoder is given


def test_the_bytes_of_a_file_read_like_the_file(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, moving(30), 25, options={"g": "12"})
    expected = read_clip(path, [3, 17, 29], "pyav")
    assert torch.equal(on_cpu(path, path.read_bytes(), [3, 17, 29], 0), expected)
    if decord_backend.is_installed():
        import decord

        encoded = BytesIO(path.read_bytes())
        seen = decord_backend._read(path, encoded, [3, 17, 29], decord.cpu(0))
        assert torch.equal(seen, expected)


@needs_decord
def test_a_single_clip_is_read_on_the_gpu_and_what_fails_there_on_the_cpu(
    tmp_path, decoders, monkeypatch, caplog
):
    path = tmp_path / "a.mp4"
    write_video(path, moving(30), 25)
    decoders(decord=None)
    with caplog.at_level(logging.INFO):
        frames = read_clip(path, [4, 1, 4], device="cuda:0")
        read_clip(path, [4], device="cuda:0")
    assert torch.equal(frames, read_clip(path, [4, 1, 4]))
    assert caplog.messages == ["decord decodes on cuda:0"]

    def fails(path, *_):
        raise VideoReadError(path, "no surface left")

    monkeypatch.setattr(decord_backend, "read_on_gpu", fails)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: (self, device))
    frames, device = read_clip(path, [4, 1], device="cuda:0")
    assert device == "cuda:0"
    assert torch.equal(frames, read_clip(path, [4, 1])[0])
    assert "a.mp4: no surface left; the CPU tries" in caplog.messages[-1]


def test_a_gpu_that_is_not_there_is_missed(tmp_path, decoders):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    decoders()
    write_video(tmp_path / "a.mp4", moving(3), 25)
    with pytest.raises(NoGpuDecoderError, match="finds no GPU for device='cuda'"):
        read_clip(tmp_path / "a.mp4", [0], device="cuda")


def encode(path: Path, codec: str = "libx264", pix_fmt: str = "yuv420p", **how) -> Path:
    frames = moving(24, how.get("size", (64, 96)))
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, 25, options=how.get("options", {"g": "12"}))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.codec_context.colorspace = how.get("colorspace", 2)
        stream.codec_context.color_range = how.get("color_range", 0)
        if how.get("rotation"):
            stream.set_display_rotation(how["rotation"])
        for place, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame.numpy())
            picture.pts = place
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    return path


def scanned(path: Path) -> ScannedClip:
    return ScannedClip(path.name, **look(path))


@pytest.mark.parametrize(
    ("name", "how", "unfit"),
    [
        ("plain.mp4", {}, {}),
        ("small.mp4", {"size": (64, 32)}, dict.fromkeys(BACKENDS, "h264 below 48x16")),
        ("full.mp4", {"pix_fmt": "yuv444p"}, dict.fromkeys(BACKENDS, "the pixel format yuv444p")),
        ("old.avi", {"codec": "mpeg4"}, dict.fromkeys(BACKENDS, "the codec mpeg4")),
        (
            "turned.mp4",
            {"rotation": 90},
            {"decord": "a rotation", "torchcodec": "a rotation"},
        ),
        ("stream.ts", {}, {"decord": "MPEG-TS", "torchcodec": "MPEG-TS"}),
        ("hd.mp4", {"colorspace": 1}, {"decord": "BT.709 or full-range colours"}),
        ("wide.mp4", {"pix_fmt": "yuvj420p"}, {"decord": "BT.709 or full-range colours"}),
        (
            "open.mp4",
            {"options": {"x264-params": "open-gop=1:keyint=12:bframes=3"}},
            dict.fromkeys(("decord", "torchcodec"), "an open group of pictures"),
        ),
    ],
)
def test_what_a_gpu_gets_wrong_stays_on_the_cpu(tmp_path, name, how, unfit):
    path = encode(tmp_path / name, **how)
    for backend in BACKENDS:
        assert gpu.unfit_for_gpu(scanned(path), backend) == unfit.get(backend, "")
        assert reading._unfit_for_gpu(path, GpuDecoder(backend, GPU)) == unfit.get(backend, "")


def test_hidden_and_repeated_frames_and_pictures_stay_on_the_cpu(tmp_path):
    whole = encode(tmp_path / "whole.mp4")
    for name, shift in (("hidden.mp4", lambda n: -5), ("twins.mp4", lambda n: -(n % 2))):
        with av.open(str(whole)) as given, av.open(str(tmp_path / name), "w") as output:
            stream = given.streams.video[0]
            copy = output.add_stream_from_template(stream)
            step = int(1 / stream.average_rate / stream.time_base)
            for n, packet in enumerate(p for p in given.demux(stream) if p.size):
                packet.pts += step * shift(n)
                if name == "twins.mp4":
                    packet.pts = packet.dts + step * (n % 2 == 0)
                else:
                    packet.dts += step * shift(n)
                packet.stream = copy
                output.mux(packet)
        reason = {"hidden.mp4": "an edit list", "twins.mp4": "repeated time stamps"}[name]
        for backend in ("decord", "torchcodec"):
            assert gpu.unfit_for_gpu(scanned(tmp_path / name), backend) == reason
        assert gpu.unfit_for_gpu(scanned(tmp_path / name), "pyav") == ""
    write_image(tmp_path / "folder/1.png", moving(1)[0])
    assert gpu.unfit_for_gpu(scanned(tmp_path / "folder"), "pyav") == "pictures"
    for path in (tmp_path / "folder", tmp_path / "folder/1.png"):
        assert reading._unfit_for_gpu(path, GpuDecoder("pyav", GPU)) == "pictures"


@pytest.mark.parametrize("bt709", [False, True])
@pytest.mark.parametrize("full_range", [False, True])
def test_planes_of_gpus_become_the_colours_of_the_cpu(bt709, full_range):
    smooth = torch.rand(1, 3, 4, 5) * 190 + 30
    rgb = torch.nn.functional.interpolate(smooth, (64, 96), mode="bicubic").clamp(0, 255)
    pixels = rgb[0].permute(1, 2, 0).to(torch.uint8).contiguous()
    coded = av.VideoFrame.from_ndarray(pixels.numpy()).reformat(
        format="yuvj420p" if full_range else "yuv420p"
    )
    coded.colorspace = 1 if bt709 else 5  # the CPU is told how to read the same numbers
    expected = torch.from_numpy(coded.reformat(format="rgb24").to_ndarray()).float()
    luma, u, v = (
        torch.frombuffer(bytearray(plane), dtype=torch.uint8).view(plane.height, -1)[
            :, : plane.width
        ]
        for plane in coded.planes
    )
    seen = {
        matrix: pyav_backend.nv12_to_rgb(luma, torch.stack((u, v), -1), matrix, full_range)
        for matrix in (bt709, not bt709)
    }
    difference = (seen[bt709].float() - expected).abs()
    assert difference.max() <= 4
    assert difference.mean() < 1.5  # of it about 1 is how FFmpeg rounds, always down
    assert (seen[not bt709].float() - expected).abs().mean() > 3


# Through the data modules


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Five clips that a GPU can decode, one that is HEVC, one folder of pictures; two held out."""
    folder = tmp_path_factory.mktemp("drawn")
    for n, name in enumerate(("train/a", "train/b", "train/c", "test/d", "test/e")):
        write_video(folder / f"{name}.mp4", moving(20, seed=n), 25, options={"g": "12"})
    hevc = {"g": "12", "x265-params": "log-level=none"}
    encode(folder / "train/h.mp4", "libx265", options=hevc)
    for n, frame in enumerate(moving(4)):
        write_image(folder / f"train/p/{n}.png", frame)
    return folder


@pytest.fixture
def root(drawn, tmp_path) -> str:
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    return str(tmp_path)


@pytest.fixture
def gpu_here(decoders, monkeypatch):
    """PyAV decodes "on a GPU", whose tensors are those of the CPU; gives what it was asked for."""
    decoders(pyav=None)
    asked: list[tuple[int, str, int, list[int]]] = []

    def read(path, encoded, indices, gpu):
        asked.append((os.getpid(), Path(path).name, len(encoded), list(indices)))
        return on_cpu(path, encoded, indices, gpu)

    def find(device, backend):
        decoder, explanation = find_gpu_decoder(GPU, backend)
        asked.clear()  # without the trial
        return decoder and replace(decoder, device=torch.device("cpu")), explanation

    monkeypatch.setattr(pyav_backend, "read_on_gpu", read)
    monkeypatch.setattr(base, "find_gpu_decoder", find)
    return asked


def everything(data: base.VideoDataModule) -> list[dict]:
    """All batches of training, validation, test and prediction."""
    loaders = (data.train_dataloader, data.val_dataloader, data.test_dataloader)
    return [
        data.on_after_batch_transfer(batch, 0)
        for make in (*loaders, data.predict_dataloader)
        for batch in make()
    ]


def assert_same(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert list(a) == list(b)
        for name, value in a.items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == b[name].dtype
                assert torch.equal(value, b[name]), name
            else:
                assert value == b[name]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_cpu_and_decoded_in_this_process(root, gpu_here, workers, caplog):
    options = {"size": 32, "batch_size": 2, "frames": 3, "num_workers": workers, "eval_frames": 4}
    plain = Clips(root, samples_per_clip=2, **options)
    plain.setup()
    ours = Clips(root, samples_per_clip=2, device="cuda", **options)
    ours.setup()
    assert caplog.messages == [
        "pyav decodes on cuda:0 (decord: not asked for; torchcodec: not asked for); the CPU "
        "decodes 2 of 7 clips: 1 hevc below 144x144, 1 pictures"
    ] or caplog.messages[0].endswith("1 pictures, 1 hevc below 144x144")
    assert_same(everything(ours), everything(plain))
    assert {pid for pid, *_ in gpu_here} == {os.getpid()}
    assert {name for _, name, *_ in gpu_here} == {f"{name}.mp4" for name in "abcde"}
    for _, name, size, indices in gpu_here:
        split = "train" if name[0] in "abc" else "test"
        assert size == Path(root, split, name).stat().st_size
        assert indices == sorted(set(indices))


def test_whole_clips_and_identities_too(root, gpu_here):
    for options in ({"sampling": "all"}, {"identity_sampling": True, "sampling": "consecutive"}):
        pair = [Clips(root, size=32, device=device, **options) for device in ("cpu", "cuda")]
        for data in pair:
            data.setup()
        assert_same(everything(pair[1]), everything(pair[0]))
    assert gpu_here


def cut_off(root: str, name: str) -> None:
    """Zero the last frames of a file; the index and the first ones say that all is well."""
    path = Path(root, name)
    content = path.read_bytes()
    kept = (content.index(b"mdat") + 2 * len(content)) // 3
    path.write_bytes(content[:kept] + bytes(len(content) - kept))


def test_damaged_clips_are_replaced_as_without_a_gpu(root, gpu_here, caplog):
    cut_off(root, "train/b.mp4")
    cut_off(root, "test/d.mp4")
    found = []
    for device in ("cpu", "cuda"):
        options = {"frames": 9, "samples_per_clip": 4, "max_unreadable": 0.8, "backend": "pyav"}
        data = Clips(root, size=32, batch_size=2, device=device, **options)
        data.setup()
        found.append((everything(data), {Path(path).name for path in data.unreadable}))
    assert_same(found[1][0], found[0][0])
    assert found[1][1] == found[0][1]
    assert found[0][1] == {"b.mp4", "d.mp4"}
    assert any("the CPU tries" in message for message in caplog.messages)


def test_what_only_the_gpu_cannot_decode_is_decoded_on_the_cpu(root, gpu_here, monkeypatch, caplog):
    def fails(path, *_):
        raise VideoReadError(path, "out of surfaces")

    plain, ours = (Clips(root, size=32, batch_size=2, device=device) for device in ("cpu", "cuda"))
    plain.setup()
    ours.setup()
    monkeypatch.setattr(pyav_backend, "read_on_gpu", fails)
    assert_same(everything(ours), everything(plain))
    assert not ours.unreadable
    assert any("out of surfaces; the CPU tries" in message for message in caplog.messages)


def test_puppets_keep_their_truth(tmp_path, gpu_here):
    small = {"size": 48, "train_identities": 2, "test_identities": 2, "clip_frames": 8}
    options = {**small, "batch_size": 2, "eval_frames": 3}
    found = []
    for device in ("cpu", "cuda"):
        data = Puppets(str(tmp_path), device=device, **options)
        data.prepare_data()
        data.setup()
        found.append(everything(data))
    assert_same(found[1], found[0])
    assert any("cross_truth" in batch for batch in found[1])
    assert gpu_here


def test_without_a_gpu_auto_uses_the_cpu_and_says_so_once_while_decord_is_missed(
    root, decoders, caplog
):
    decoders(decord="has no CUDA", torchcodec="not installed", pyav="no driver")
    plain, ours = (Clips(root, size=32, batch_size=2, device=device) for device in ("cpu", "cuda"))
    plain.setup()
    ours.setup()
    assert_same(everything(ours), everything(plain))
    assert len(caplog.messages) == 1
    assert "the CPU decodes, since nothing does on cuda:0 (decord: has no" in caplog.messages[0]
    if decord_backend.is_installed():
        with pytest.raises(DataError, match=r"has no CUDA.*USE_CUDA=ON"):
            Clips(root, backend="decord", device="cuda").setup()


def test_a_resumed_run_goes_on_where_it_stopped(root, gpu_here):
    def loader():
        data = Clips(root, size=32, batch_size=1, device="cuda")
        data.setup()
        return data.train_dataloader()

    whole = list(loader())
    first = loader()
    batches = iter(first)
    taken = [next(batches), next(batches)]
    rest = loader()
    rest.load_state_dict(first.state_dict())
    assert_same(taken + list(rest), whole)


# On a GPU


@pytest.fixture
def real_gpu(request) -> GpuDecoder:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    obstacle = gpu.gpu_obstacle(request.param, GPU)
    if obstacle is not None:
        pytest.skip(f"{request.param}: {obstacle}")
    return GpuDecoder(request.param, GPU)


every_decoder = pytest.mark.parametrize("real_gpu", BACKENDS, indirect=True)


@pytest.mark.gpu
@every_decoder
@pytest.mark.parametrize("gop", ["1", "12", "250"])
def test_frames_of_the_gpu_are_those_of_the_cpu(tmp_path, real_gpu, gop):
    path = tmp_path / "a.mp4"
    write_video(path, moving(28, (256, 256)), 25, options={"g": gop})
    indices = [27, 0, 13, 13, 5, 26]
    seen = real_gpu.read(path, path.read_bytes(), indices)
    assert seen.device == GPU
    assert seen.dtype == torch.uint8
    expected = read_clip(path, indices)
    # Colours are rounded elsewhere, and chroma is placed elsewhere at edges.
    assert (seen.cpu().float() - expected.float()).abs().mean() <= 2
    for frame, index in zip(seen.cpu(), indices, strict=True):
        assert abs(frame[10:100, 10:100].float().mean() - (8 * index + 16)) < 4


@pytest.mark.gpu
@every_decoder
def test_batches_of_the_gpu_are_near_those_of_the_cpu(real_gpu, root, monkeypatch):
    explained = (real_gpu, real_gpu.name)
    monkeypatch.setattr(base, "find_gpu_decoder", lambda *_: explained)
    options = {"size": 32, "batch_size": 2, "frames": 3, "num_workers": 2}
    plain, ours = (Clips(root, device=device, **options) for device in ("cpu", "cuda"))
    plain.setup()
    ours.setup()
    for a, b in zip(everything(ours), everything(plain), strict=True):
        assert a["key"] == b["key"]
        for name in {"video", "driving"} & set(a):
            assert a[name].device == GPU
            assert (a[name].cpu() - b[name]).abs().mean() <= 2 / 127.5


@pytest.mark.gpu
@every_decoder
def test_opening_on_the_gpu_keeps_no_memory(tmp_path, real_gpu):
    path = tmp_path / "a.mp4"
    write_video(path, moving(24, (256, 256)), 25, options={"g": "12"})
    encoded = path.read_bytes()
    for turn in range(300):
        real_gpu.read(path, encoded, [3, 17])
        if turn == 50:
            free_before = torch.cuda.mem_get_info(GPU)[0]
    assert free_before - torch.cuda.mem_get_info(GPU)[0] < 64 * 2**20


@pytest.mark.gpu
def test_frames_are_resized_on_the_gpu_as_on_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    from lmdvid.video import resize

    frames = torch.randint(0, 256, (2, 60, 80, 3), dtype=torch.uint8)
    difference = resize(frames.to(GPU), 32).cpu().int() - resize(frames, 32).int()
    assert difference.abs().max() <= 1
