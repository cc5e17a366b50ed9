"""Scores of animations against values worked out by hand or by other programs."""

import math

import numpy as np
import pytest
import torch

from lmdvid.metrics.animation import IdentityScores, KeypointScores, ReconstructionScores, pairs_of
from lmdvid.metrics.detections import DetectionsError, as_points, load_detections


def values(metric) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


def waves() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three frames (32, 32, 3) in [0, 1]: a, and two versions of it."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    a = torch.stack([(torch.sin(0.3 * x + 0.2 * y + k) + 1) / 2 for k in range(3)], -1).double()
    first = (a + 0.1 * torch.cos(0.5 * x - 0.4 * y)[..., None]).clamp(0, 1)
    return a, first, (a + 0.02).clamp(0, 1)


def as_video(*frames: torch.Tensor) -> torch.Tensor:
    return torch.stack(frames).permute(0, 3, 1, 2).float()[None] * 2 - 1


class TestReconstruction:
    def test_known_values(self):
        a, first, second = waves()
        metric = ReconstructionScores()
        metric.update(as_video(first, second), as_video(a, a))
        assert values(metric) == {
            "l1": pytest.approx((0.0561284378261 + 0.0187825148871) / 2, rel=1e-5),
            "psnr": pytest.approx(29.0101325463, rel=1e-5),
            "ssim": pytest.approx((0.923065312 + 0.993789189) / 2, rel=1e-5),
        }

    def test_by_video_or_by_frame(self):
        a, first, second = waves()
        ones, twos = 0.0561284378261, 0.0187825148871
        for reduction, expected in (("video", (ones + twos) / 2), ("frame", (ones + 3 * twos) / 4)):
            metric = ReconstructionScores(reduction)
            metric.update(as_video(first), as_video(a))
            metric.update(as_video(second, second, second), as_video(a, a, a))
            assert values(metric)["l1"] == pytest.approx(expected, rel=1e-5)

    def test_clamps_caps_and_asks_another_network(self):
        video = torch.ones(1, 2, 3, 12, 12)
        metric = ReconstructionScores(lpips=lambda a, b: (a - b).flatten(1).sum(1) + 7)
        metric.to(torch.bfloat16)
        metric.update(3 * video, video)
        found = values(metric)
        assert found["lpips"] == 7
        assert (found["l1"], found["psnr"]) == (0, pytest.approx(100))
        assert metric.totals.dtype == torch.float64

    def test_autocast_changes_nothing(self):
        a, first, second = waves()
        alone, around = ReconstructionScores(), ReconstructionScores()
        alone.update(as_video(first, second), as_video(a, a))
        with torch.autocast("cpu", torch.bfloat16):
            around.update(as_video(first, second), as_video(a, a))
        assert values(around) == values(alone)

    def test_refuses(self):
        metric = ReconstructionScores()
        with pytest.raises(ValueError, match="no video was compared"):
            metric.compute()
        with pytest.raises(ValueError, match=r"not \(1, 2, 3, 8, 8\) and \(1, 3, 3, 8, 8\)"):
            metric.update(torch.zeros(1, 2, 3, 8, 8), torch.zeros(1, 3, 3, 8, 8))
        with pytest.raises(ValueError, match='"clip"; possible are "video" and "frame"'):
            ReconstructionScores("clip")  # pyright: ignore[reportArgumentType]


class TestKeypoints:
    truth = torch.tensor(
        [[[10, 20], [30, 40], [50, 60]], [[11, 19], [31, 39], [52, 61]]], dtype=torch.float64
    )
    found = torch.tensor(
        [[[13, 24], [30, 40], [50, 58]], [[11, 19], [34, 43], [52, 61]]], dtype=torch.float64
    )

    def test_known_values(self):
        metric = KeypointScores()
        metric.update(self.found[:1], self.truth[:1])
        metric.update(self.found[1:], self.truth[1:])
        assert values(metric) == {
            "akd": pytest.approx(4 / 3),
            "mkr": 0.0,
            "euclidean": pytest.approx(2.0),
        }

    @pytest.mark.parametrize("missing", [-1.0, math.nan])
    def test_missing_points_by_frame_not_pooled(self, missing):
        truth, found = self.truth.clone(), self.truth.clone()
        truth[0, 2] = found[0, 0] = found[1, 1] = found[1, 2] = missing
        metric = KeypointScores()
        metric.update(found, truth)
        assert values(metric) == {
            "akd": 0.0,
            "mkr": pytest.approx((1 / 2 + 2 / 3) / 2),
            "euclidean": 0.0,
        }

    def test_frames_without_a_generated_face_are_passed_over(self):
        found = self.found.clone()
        found[1] = math.nan
        metric = KeypointScores()
        metric.update(found, self.truth)
        assert values(metric)["akd"] == pytest.approx((3 + 4 + 2) / 6)
        assert values(metric)["mkr"] == 0.5

    def test_refuses(self):
        with pytest.raises(ValueError, match="no frame has a key point in the truth"):
            KeypointScores().compute()
        with pytest.raises(ValueError, match=r"must be \(T, K, 2\) twice"):
            KeypointScores().update(self.found[0], self.truth[0])


class TestIdentity:
    def test_known_values(self):
        metric = IdentityScores()
        a = torch.tensor([[0.6, 0.8, 0], [1, 0, 0], [math.nan] * 3], dtype=torch.float64)
        b = torch.tensor([[0.8, 0.6, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
        metric.update(a, b)
        metric.update(b[2:], a[2:])  # nothing in the truth
        assert values(metric) == {
            "aed": pytest.approx(1.04),
            "euclidean": pytest.approx(0.848528137),
            "csim": pytest.approx(0.48),
            "missed": pytest.approx(1 / 3),
        }

    def test_refuses(self):
        with pytest.raises(ValueError, match="no frame has a face in the truth"):
            IdentityScores().compute()
        with pytest.raises(ValueError, match=r"must be \(T, D\) twice"):
            IdentityScores().update(torch.zeros(2, 3), torch.zeros(2, 4))


class TestDetections:
    def test_both_forms_agree(self, tmp_path):
        points = np.array([[[1, 2], [3, 4]], [[math.nan] * 2] * 2, [[5, 6], [7, math.nan]]])
        np.savez(tmp_path / "a.npz", **{"clip.mp4": points, "detector": np.array("fan 1.2")})
        (tmp_path / "a.csv").write_text(
            "clip,frame,x0,y0,x1,y1\n./clip.png,2,5,6,7,\n./clip.png,0,1,2,3,4\n"
        )
        (a, about), (b, _) = (load_detections(tmp_path / f"a.{s}") for s in ("npz", "csv"))
        assert list(a) == list(b) == ["clip"]
        assert about["detector"] == "fan 1.2"
        assert len(about["sha256"]) == 64
        found = as_points(b["clip"])
        torch.testing.assert_close(found, as_points(a["clip"]), equal_nan=True)
        ((_, left, right),) = pairs_of(a, {"clip": a["clip"][:2]}, fill=True)
        assert right[2].isnan().all()
        assert left.shape == right.shape

    def test_names_are_paths_without_suffix(self, tmp_path):
        names = ["id1/00001.mp4", "id2/00001.mp4", "v.1", "v.2"]
        np.savez(tmp_path / "a.npz", **{name: np.zeros((1, 3)) for name in names})
        assert list(load_detections(tmp_path / "a.npz")[0]) == [
            "id1/00001",
            "id2/00001",
            *names[2:],
        ]
        np.savez(tmp_path / "a.npz", **{name: np.zeros((1, 3)) for name in ("a.mp4", "a.npy")})
        with pytest.raises(DetectionsError, match="two clips are called a\\n"):
            load_detections(tmp_path / "a.npz")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("clip,frame,x\nq,0,3\nq,0,3\n", "line 3 names frame 0 of q again"),
            ("a,b,c\n", "its first line is a,b,c"),
            ("clip,frame,x\nq,0\n", "line 2 has 2 of 3 values"),
            ("clip,frame,x\nq,first,3\n", "invalid literal"),
            ("clip,frame,x\nq,-1,3\n", "line 2 names frame -1"),
            ("clip,frame,x\n", "holds no detections"),
        ],
    )
    def test_refuses_another_csv(self, tmp_path, text, message):
        path = tmp_path / "a.csv"
        path.write_text(text)
        with pytest.raises(DetectionsError, match=message):
            load_detections(path)

    def test_refuses_another_npz(self, tmp_path):
        with pytest.raises(DetectionsError, match="no such file"):
            load_detections(tmp_path / "a.npz")
        (tmp_path / "a.npz").write_text("no zip")
        with pytest.raises(DetectionsError, match="holds no detections"):
            load_detections(tmp_path / "a.npz")
        np.savez(tmp_path / "b.npz", clip=np.zeros(3))
        with pytest.raises(DetectionsError, match=r"clip is \(3,\) float64"):
            load_detections(tmp_path / "b.npz")
        with pytest.raises(DetectionsError, match="3 values in a row are not pairs"):
            as_points(torch.zeros(2, 3))

    def test_join_refuses_what_does_not_fit(self):
        with pytest.raises(ValueError, match=r"1 clips have no detections .* first is b"):
            pairs_of({"a": torch.zeros(1, 2)}, {"a": torch.zeros(1, 2), "b": torch.zeros(1, 2)})
        with pytest.raises(ValueError, match=r"a has 1 frames .* 2 in the real one"):
            pairs_of({"a": torch.zeros(1, 2)}, {"a": torch.zeros(2, 2)})
