"""Boxes, faces, and the way back into the picture."""

import sys
import types

import numpy as np
import pytest
import torch

from lmdvid.framing import Framing, FramingError, PasteBack


def noise(height: int, width: int) -> torch.Tensor:
    return (torch.rand(height, width, 3) * 255).to(torch.uint8)


def fake_opencv(monkeypatch, faces) -> list[np.ndarray]:
    """A module in the place of OpenCV that finds these faces; the pictures it is shown."""
    seen = []

    def detect(picture, **_):
        seen.append(picture)
        return faces

    cv2 = types.ModuleType("cv2")
    cv2.CascadeClassifier = lambda path: types.SimpleNamespace(detectMultiScale=detect)  # type: ignore[attr-defined]
    cv2.data = types.SimpleNamespace(haarcascades="/")  # type: ignore[attr-defined]
    cv2.COLOR_RGB2GRAY = 7  # type: ignore[attr-defined]
    cv2.cvtColor = lambda picture, code: picture.mean(axis=-1).astype(np.uint8)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    return seen


def test_boxes_are_cut_and_made_square():
    picture = noise(40, 60)
    framing = Framing.choose("x.png", picture, (10, 4, 30, 20), "crop", 20)
    assert torch.equal(framing(picture), picture[4:24, 15:35])
    framing = Framing.choose("x.png", picture, (10, 4, 30, 20), "pad", 30)
    assert torch.equal(framing(picture)[5:25], picture[4:24, 10:40])


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 0, 5), (56, 0, 5, 5), (0, 36, 5, 5)])
def test_boxes_must_lie_in_the_picture(box):
    with pytest.raises(FramingError, match=r"does not lie in x\.png, which is 60x40 pixels"):
        Framing.choose("x.png", noise(40, 60), box, "crop", 32)


def test_frames_that_shrink_are_refused():
    framing = Framing.choose("x", noise(40, 60), (0, 0, 40, 40), "crop", 32)
    with pytest.raises(FramingError, match="30x30 pixels"):
        framing(noise(30, 30))


def test_the_largest_face_gets_room_within_the_picture(monkeypatch):
    seen = fake_opencv(monkeypatch, np.array([[10, 10, 20, 20], [100, 60, 50, 50]]))
    assert Framing.choose("x", noise(200, 300), "face", "crop", 32).box == (80, 40, 90, 90)
    assert seen[0].shape == (200, 300)
    fake_opencv(monkeypatch, np.array([[2, 150, 50, 50]]))
    assert Framing.choose("x", noise(200, 300), "face", "crop", 32).box == (0, 110, 90, 90)
    fake_opencv(monkeypatch, np.array([[20, 20, 150, 150]]))
    assert Framing.choose("x", noise(200, 300), "face", "crop", 32).box == (0, 0, 200, 200)


def test_no_face_and_no_detector_are_said(monkeypatch):
    fake_opencv(monkeypatch, ())
    with pytest.raises(FramingError, match=r"no face found in me\.png: give the box"):
        Framing.choose("me.png", noise(50, 50), "face", "crop", 32)
    monkeypatch.setitem(sys.modules, "cv2", types.ModuleType("cv2"))  # OpenCV 5 has no cascades
    with pytest.raises(FramingError, match="pip install 'opencv-python-headless<5'"):
        Framing.choose("me.png", noise(50, 50), "face", "crop", 32)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(FramingError, match="pip install 'opencv-python-headless<5'"):
        Framing.choose("me.png", noise(50, 50), "face", "crop", 32)
    with pytest.raises(FramingError, match="choose 'face'"):
        Framing.choose("me.png", noise(50, 50), "nose", "crop", 32)  # type: ignore[arg-type]


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("box", [(10, 4, 31, 20), (5, 3, 16, 33), None])
def test_what_was_cut_goes_back_where_it_was(box, fit):
    picture = noise(40, 60)
    *_, width, height = box or (0, 0, 60, 40)
    side = (min if fit == "crop" else max)(width, height)
    framing = Framing.choose("x", picture, box, fit, side)
    assert torch.equal(PasteBack(picture, framing)(framing(picture)), picture)


def test_the_seam_is_soft_except_at_the_pictures_edge():
    picture = torch.zeros(100, 100, 3, dtype=torch.uint8)
    framing = Framing("x", (0, 20, 50, 50), "crop", 25)
    result = PasteBack(picture, framing)(torch.full((25, 25, 3), 200, dtype=torch.uint8))
    assert result[45, :, 0].tolist() == [200] * 46 + [175, 125, 75, 25] + [0] * 50
    assert result[:, 10, 0].tolist() == (
        [0] * 20 + [25, 75, 125, 175] + [200] * 42 + [175, 125, 75, 25] + [0] * 30
    )
    assert not picture.any()
