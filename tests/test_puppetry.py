"""Puppets: exact identity and pose, drawn the same way at every size."""

import subprocess
import sys

import numpy as np
import pytest

from data_modules import puppetry
from data_modules.puppetry import (
    IDENTITY_DIM,
    IDENTITY_NAMES,
    KINDS,
    POSE_DIM,
    POSE_NAMES,
    POSE_RANGES,
    identity,
    neutral_pose,
    pose_path,
    render,
)

both = pytest.mark.parametrize("kind", KINDS)


def _face(**entries: float) -> np.ndarray:
    """An identity with every entry at 0.5 (plain, symmetric) but the given ones."""
    values = np.full(IDENTITY_DIM, 0.5, np.float32)
    plain = {"hair_style": 4.5 / 8, "cloth_pattern": 0.0, "background_style": 0.0}
    for name, value in (plain | entries).items():
        values[IDENTITY_NAMES.index(name)] = value
    return values


def _pose(kind: str, **entries: float) -> np.ndarray:
    pose = neutral_pose(kind)
    for name, value in entries.items():
        pose[POSE_NAMES[kind].index(name)] = value
    return pose


@both
def test_vectors_have_the_documented_shapes_and_ranges(kind):
    who, path = identity(3, kind), pose_path(3, 40, kind)
    assert who.shape == (IDENTITY_DIM,)
    assert who.dtype == path.dtype == neutral_pose(kind).dtype == np.float32
    assert path.shape == (40, POSE_DIM[kind])
    assert neutral_pose(kind).shape == (POSE_DIM[kind],)
    assert who.min() >= 0
    assert who.max() <= 1
    assert len(POSE_NAMES[kind]) == len(POSE_RANGES[kind]) == POSE_DIM[kind]


@both
@pytest.mark.parametrize("size", [32, 47, 64])
def test_pictures_are_uint8_of_the_asked_size(kind, size):
    who, path = identity(0, kind), pose_path(0, 3, kind)
    clip = render(who, path, size, kind)
    assert clip.shape == (3, size, size, 3)
    assert clip.dtype == np.uint8
    np.testing.assert_array_equal(render(who, path[1], size, kind), clip[1])


@both
def test_equal_seeds_draw_equal_pictures(kind):
    first = render(identity(5, kind), pose_path(6, 4, kind), 64, kind)
    again = render(identity(5, kind), pose_path(6, 4, kind), 64, kind)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(identity(5, kind), identity(6, kind))
    assert not np.array_equal(pose_path(5, 4, kind), pose_path(6, 4, kind))


def test_vectors_are_the_same_on_every_machine():
    # PCG64 is specified bit by bit; these are the draws that the shipped pictures were made from.
    who, pose = identity(0, "head"), pose_path(0, 10, "taichi")[9]
    np.testing.assert_allclose(who[:3], [0.6369617, 0.2697867, 0.0409735], atol=1e-7)
    np.testing.assert_allclose(pose[[0, 2]], [0.1581484, 0.0118717], atol=1e-6)


def test_eyes_close_as_often_late_in_a_long_clip_as_early():
    path = pose_path(0, 25 * 600, "head")[:, POSE_NAMES["head"].index("left_eye")]
    shut = path < 0.2
    blinks = (shut[1:] & ~shut[:-1]).reshape(-1)
    early, late = blinks[: len(blinks) // 2].sum(), blinks[len(blinks) // 2 :].sum()
    assert early > 80
    assert 0.7 < late / early < 1.4


@both
def test_a_frame_does_not_depend_on_its_neighbours(kind):
    # Frames are drawn in batches that share windows: that must not show.
    who, path = identity(2, kind), pose_path(2, 40, kind)
    clip = render(who, path, 64, kind)
    alone = np.stack([render(who, path[at], 64, kind) for at in (0, 17, 39)])
    assert np.abs(clip[[0, 17, 39]].astype(int) - alone.astype(int)).max() <= 1


@both
def test_the_background_stands_still(kind):
    for seed in range(8):
        clip = render(identity(seed, kind), pose_path(seed, 24, kind)[::4], 64, kind)
        for corner in (clip[:, :4, :4], clip[:, :4, -4:]):
            assert (corner == corner[:1]).all()


@both
def test_identity_shows_in_the_background_and_in_the_figure(kind):
    pictures = [render(identity(seed, kind), neutral_pose(kind), 64, kind) for seed in range(12)]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert np.abs(one.astype(int) - other.astype(int)).mean() > 5


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in KINDS for name in POSE_NAMES[kind]]
)
def test_each_pose_coordinate_changes_the_picture(kind, name):
    who = _face()
    low, high = POSE_RANGES[kind][POSE_NAMES[kind].index(name)]
    rest = neutral_pose(kind)[POSE_NAMES[kind].index(name)]
    far = high if high - rest > rest - low else low
    start, half, end = render(
        who,
        np.stack([_pose(kind, **{name: v}) for v in (rest, 0.5 * (rest + far), far)]),
        64,
        kind,
    ).astype(int)
    assert np.abs(half - start).max() > 30
    assert np.abs(end - half).max() > 30


@pytest.mark.parametrize("name", IDENTITY_NAMES)
def test_each_identity_entry_matters_to_some_picture(name):
    styles = {"glasses": 0.9, "beard": 0.9, "fringe": 0.4, "hair_style": 7.5 / 8}
    styles["background_style"] = 0.5
    changed = 0
    for kind in KINDS:
        for value in (0.02, 0.98):
            one = render(_face(**styles), neutral_pose(kind), 48, kind).astype(int)
            other = _face(**(styles | {name: value}))
            changed += np.abs(render(other, neutral_pose(kind), 48, kind) - one).max() > 4
    assert changed


@both
def test_small_pictures_are_the_large_ones_averaged(kind):
    for seed in (0, 4, 7):
        who, path = identity(seed, kind), pose_path(seed, 30, kind)[::10]
        small = render(who, path, 64, kind).astype(float)
        large = render(who, path, 256, kind).astype(float)
        mean = large.reshape(3, 64, 4, 64, 4, 3).mean((2, 4))
        difference = np.abs(mean - small)
        assert difference.mean() < 1.3
        assert np.quantile(difference, 0.99) < 24


def test_edges_are_anti_aliased():
    # Along a row through the forehead of a bald head the colour goes from wall to skin over one
    # or two pixels that mix both.
    row = render(_face(skin=0.0), neutral_pose("head"), 128, "head")[36, :64].astype(float)
    edge = int(np.argmax(np.abs(np.diff(row, axis=0)).sum(-1)))
    wall, skin = row[edge - 3], row[edge + 4]
    share = ((row - wall) @ (skin - wall)) / ((skin - wall) @ (skin - wall))
    window = share[edge - 3 : edge + 5]
    assert 1 <= ((window > 0.05) & (window < 0.95)).sum() <= 3
    assert (np.diff(window) > -0.05).all()


@pytest.mark.parametrize("radius", [0.02, 0.1, 0.63])
def test_coverage_adds_up_to_the_area_of_a_shape(radius):
    canvas = puppetry._Canvas(np.zeros((3, 64, 64), np.float32), 1)
    layer = canvas.layer(canvas.screen().at(0.017, -0.029), -1.0, -1.0, 1.0, 1.0)
    disc = layer.cover(puppetry._ellipse(layer.u, layer.v, radius, radius))
    tolerance = 0.02 if radius > 0.05 else 0.5  # a disc smaller than a pixel is drawn bolder
    area = disc.sum() * canvas.pixel**2
    np.testing.assert_allclose(area, np.pi * radius**2, rtol=tolerance)
    # A band thinner than a pixel keeps its area too.
    flat = np.zeros_like(layer.u)
    band = layer.band(layer.v, flat - 0.004, flat + 0.005, 0.0, np.abs(layer.u) - 0.5)
    np.testing.assert_allclose(band.sum() * canvas.pixel**2, 0.009, rtol=1e-3)


def test_moving_by_a_fraction_of_a_pixel_shows():
    step = 0.25 * 2.0 / 64
    still, moved = render(
        _face(), np.stack([_pose("taichi"), _pose("taichi", x=step)]), 64, "taichi"
    ).astype(int)
    change = np.abs(still - moved)
    assert 10 < change.max() < 128


@pytest.mark.parametrize(("name", "value"), [("yaw", 0.6), ("roll", 0.3), ("gaze_x", 1.0)])
def test_opposite_poses_mirror_each_other(name, value):
    who = _face(accessory=0.9)
    rest, right, left = render(
        who,
        np.stack([_pose("head"), _pose("head", **{name: value}), _pose("head", **{name: -value})]),
        96,
        "head",
    ).astype(float)
    motion_right = np.abs(right - rest).mean(-1)
    motion_left = np.abs(left - rest).mean(-1)[:, ::-1]
    assert np.corrcoef(motion_right.ravel(), motion_left.ravel())[0, 1] > 0.8


def test_turning_moves_the_mouth_more_than_the_ears():
    def centre(change: np.ndarray, rows: slice) -> float:
        weight = change[rows].sum(0)
        return float(weight @ np.arange(len(weight)) / weight.sum())

    # Opening the mouth marks where the mouth is; putting rings on, where the ears are.
    shift = {}
    for yaw in (0.0, 0.3):
        pose = np.stack([_pose("head", yaw=yaw), _pose("head", yaw=yaw, mouth_open=1.0)])
        with_rings = render(_face(accessory=0.1), pose, 128, "head").astype(float)
        without = render(_face(accessory=0.4), pose, 128, "head").astype(float)
        mouth = np.abs(without[1] - without[0]).sum(-1)
        rings = np.abs(with_rings[0] - without[0]).sum(-1)
        rings[:, 64:] = 0  # the far ring may hide behind the head
        shift[yaw] = centre(mouth, slice(0, 110)), centre(rings, slice(0, 80))
    assert shift[0.3][0] - shift[0.0][0] > 5
    assert shift[0.3][0] - shift[0.0][0] > 2 * abs(shift[0.3][1] - shift[0.0][1])


def test_the_near_arm_hides_the_jacket_and_the_jacket_the_far_arm():
    hidden = {}
    for side in ("near", "far"):
        across = {f"{side}_shoulder": -0.6, f"{side}_elbow": 0.8}
        out = {f"{side}_shoulder": 1.2}
        crossed, aside = render(
            _face(cloth_pattern=0.9),
            np.stack([_pose("taichi", **across), _pose("taichi", **out)]),
            128,
            "taichi",
        ).astype(int)
        chest = (slice(50, 62), slice(60, 68))
        hidden[side] = np.abs(crossed - aside)[chest].mean()
    assert hidden["near"] > 10 * hidden["far"] + 1


@both
def test_paths_are_smooth_lively_and_within_their_ranges(kind):
    low, high = np.array(POSE_RANGES[kind]).T
    seen_low, seen_high = np.full_like(low, np.inf), np.full_like(high, -np.inf)
    for seed in range(20):
        path = pose_path(seed, 200, kind)
        assert (path >= low - 1e-6).all()
        assert (path <= high + 1e-6).all()
        step = np.abs(np.diff(path, axis=0)).max(0) / (high - low)
        quick = np.isin(POSE_NAMES[kind], ("mouth_open", "left_eye", "right_eye"))
        assert (step < np.where(quick, 0.7, 0.15)).all()
        seen_low, seen_high = np.minimum(seen_low, path.min(0)), np.maximum(seen_high, path.max(0))
    assert ((seen_high - seen_low) > 0.3 * (high - low)).all()


@both
def test_copying_the_source_is_a_poor_prediction(kind):
    errors = []
    for seed in range(6):
        clip = render(identity(seed, kind), pose_path(seed, 200, kind)[::20], 32, kind) / 255.0
        errors += [((clip - np.roll(clip, by, axis=0)) ** 2).mean() for by in (2, 3, 5)]
    assert -10 * np.log10(np.mean(errors)) < 18


def test_heads_blink_and_talk():
    path = dict(zip(POSE_NAMES["head"], pose_path(1, 300, "head").T, strict=True))
    shut = path["left_eye"] < 0.2
    assert 0.01 < shut.mean() < 0.3
    assert (np.diff(shut.astype(int)) == 1).sum() >= 3
    assert path["mouth_open"].max() > 0.8
    assert path["mouth_open"].min() < 0.1


def test_one_foot_always_stands_on_the_floor():
    pose = dict(zip(POSE_NAMES["taichi"], pose_path(4, 200, "taichi").T, strict=True))
    heights = []
    for side in ("far", "near"):
        thigh = puppetry._REST_THIGH + pose[f"{side}_hip"]
        shin = thigh - puppetry._REST_KNEE - pose[f"{side}_knee"]
        leg = puppetry._THIGH * np.cos(thigh) + puppetry._SHIN * np.cos(shin)
        foot = puppetry._HIP_HEIGHT + pose["y"] + leg
        heights.append(puppetry._FLOOR - puppetry._ANKLE - foot)
    assert np.min(heights) > -1e-4  # never through the floor
    assert np.min(heights, axis=0).max() < 0.03  # one foot down, or its leg just stretched
    assert np.max(heights) > 0.05  # and sometimes one is lifted


@both
def test_a_longer_path_begins_with_the_shorter_one(kind):
    np.testing.assert_array_equal(pose_path(9, 120, kind)[:30], pose_path(9, 30, kind))
    np.testing.assert_allclose(
        pose_path(9, 60, kind, fps=50.0)[::2], pose_path(9, 30, kind), atol=1e-6
    )


@both
def test_wrong_arguments_say_what_is_possible(kind):
    who, rest = identity(0, kind), neutral_pose(kind)
    first = POSE_NAMES[kind][0]
    with pytest.raises(ValueError, match="choose one of head, taichi"):
        identity(0, "dog")
    with pytest.raises(ValueError, match="choose one of head, taichi"):
        render(who, rest, 64, "dog")
    with pytest.raises(ValueError, match="non-negative integer"):
        pose_path(-1, 3, kind)
    with pytest.raises(ValueError, match="at least 1 frame"):
        pose_path(0, 0, kind)
    with pytest.raises(ValueError, match="at least 1 frame"):
        pose_path(0, 3, kind, fps=0.0)
    for size in (16, 1024, 64.5):
        with pytest.raises(ValueError, match="32 to 512 pixels"):
            render(who, rest, size, kind)
    with pytest.raises(ValueError, match="identity has shape"):
        render(who[:-1], rest, 64, kind)
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        render(who + 1.5, rest, 64, kind)
    with pytest.raises(ValueError, match=f"needs \\({POSE_DIM[kind]},\\)"):
        render(who, rest[:-1], 64, kind)
    with pytest.raises(ValueError, match=f"{first!r} spans"):
        render(who, _pose(kind, **{first: 3.0}), 64, kind)
    with pytest.raises(ValueError, match=f"{first!r} spans nan"):
        render(who, _pose(kind, **{first: np.nan}), 64, kind)


def test_drawing_needs_neither_torch_nor_lightning():
    code = (
        "import sys, data_modules.puppetry\n"
        "print(sorted({'torch', 'lightning', 'lmdvid'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
