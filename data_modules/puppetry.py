"""Procedural puppets: talking heads and tai-chi figures with exactly known identity and pose.

Every picture is a pure function of two vectors. The *identity* says who is drawn and where (skin,
hair, clothes, background), the *pose* says what the puppet does; any identity can perform any pose
of its kind, so the ground truth of a motion transfer can be drawn instead of guessed.

A picture is a stack of flat shapes, painted back to front. Each shape is a signed distance,
negative inside; in units of the pixel it gives the share of the pixel that is covered, so edges are
anti-aliased at any resolution without supersampling, and 32 px and 512 px show the same scene.
Scene coordinates run over [-1, 1], x to the right and y downwards. Heads turn in 2.5-D: every
feature sits on an ellipsoid, is rotated with it, and is painted in the plane that touches it there.

Draws come from ``PCG64`` through ``SeedSequence`` only, so vectors are the same everywhere; pixels
may differ by one level between machines, because sines and roots are rounded by the processor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

KINDS = ("head", "taichi")

IDENTITY_NAMES = (
    "skin",
    "undertone",
    "face_width",
    "face_length",
    "jaw",
    "hair_style",
    "hair_colour",
    "hair_volume",
    "eye_colour",
    "eye_size",
    "eye_spacing",
    "brow_weight",
    "brow_tilt",
    "nose_size",
    "mouth_width",
    "lip_colour",
    "glasses",
    "beard",
    "cloth_colour",
    "cloth_accent",
    "cloth_pattern",
    "collar",
    "background_style",
    "background_colour",
    "background_detail",
    "build",
    "accessory",
    "fringe",
)
"""Entries of an identity vector, each in [0, 1]; both kinds share the layout."""

IDENTITY_DIM = len(IDENTITY_NAMES)

_POSES: dict[str, dict[str, tuple[float, float, float]]] = {
    "head": {
        "yaw": (-0.75, 0.75, 0.0),
        "pitch": (-0.45, 0.45, 0.0),
        "roll": (-0.4, 0.4, 0.0),
        "x": (-0.2, 0.2, 0.0),
        "y": (-0.12, 0.12, 0.0),
        "mouth_open": (0.0, 1.0, 0.0),
        "smile": (-1.0, 1.0, 0.0),
        "left_eye": (0.0, 1.0, 1.0),
        "right_eye": (0.0, 1.0, 1.0),
        "gaze_x": (-1.0, 1.0, 0.0),
        "gaze_y": (-1.0, 1.0, 0.0),
        "brows": (-1.0, 1.0, 0.0),
    },
    "taichi": {
        "x": (-0.4, 0.4, 0.0),
        "y": (-0.1, 0.3, 0.0),
        "lean": (-0.3, 0.3, 0.0),
        "twist": (-0.7, 0.7, 0.0),
        "head_turn": (-1.0, 1.0, 0.0),
        "far_shoulder": (-0.8, 2.6, 0.0),
        "far_elbow": (-0.3, 2.4, 0.0),
        "near_shoulder": (-1.2, 2.6, 0.0),
        "near_elbow": (-0.3, 2.4, 0.0),
        "far_hip": (-0.8, 1.5, 0.0),
        "far_knee": (-0.3, 2.2, 0.0),
        "near_hip": (-0.8, 1.5, 0.0),
        "near_knee": (-0.3, 2.2, 0.0),
    },
}

POSE_NAMES: dict[str, tuple[str, ...]] = {kind: tuple(spec) for kind, spec in _POSES.items()}
"""Coordinates of a pose vector, in order.

Head: ``yaw`` (radians, positive turns to the right of the picture), ``pitch`` (radians, positive
looks up), ``roll`` (radians, positive tilts clockwise), ``x`` and ``y`` (shift of the head in scene
units), ``mouth_open`` (0 closed, 1 wide), ``smile`` (-1 corners down, 1 up), ``left_eye`` and
``right_eye`` (0 shut, 1 open; left and right of the picture), ``gaze_x`` and ``gaze_y`` (-1 left or
up, 1 right or down), ``brows`` (-1 lowered, 1 raised).

Tai-chi: ``x`` and ``y`` (shift of the hips in scene units, y downwards), ``lean`` (radians,
positive to the right), ``twist`` (radians, the chest turns to the right), ``head_turn`` (-1 left,
1 right), and joint angles in radians relative to standing at ease: shoulders (positive raises the arm
outwards), elbows (positive folds the forearm up), hips (positive opens the leg outwards), knees
(positive folds). The far arm and leg are on the left of the picture, the near ones on the right.
"""

POSE_DIM: dict[str, int] = {kind: len(spec) for kind, spec in _POSES.items()}

POSE_RANGES: dict[str, tuple[tuple[float, float], ...]] = {
    kind: tuple((low, high) for low, high, _ in spec.values()) for kind, spec in _POSES.items()
}
"""Smallest and largest value of every pose coordinate, in the order of ``POSE_NAMES``."""

SIZES = (32, 512)

_TAU = 2.0 * np.pi


def identity(seed: int, kind: str) -> np.ndarray:
    """Draw a puppet's identity.

    Args:
        seed: A non-negative integer; equal seeds give equal puppets.
        kind: One of ``KINDS``.

    Returns:
        ``(IDENTITY_DIM,)`` float32 in [0, 1], entries named by ``IDENTITY_NAMES``.

    Raises:
        ValueError: For an unknown kind or a negative seed.
    """
    return _rng(seed, kind, 0).random(IDENTITY_DIM).astype(np.float32)


def neutral_pose(kind: str) -> np.ndarray:
    """The pose at rest: facing the viewer with open eyes, or standing at ease.

    Args:
        kind: One of ``KINDS``.

    Returns:
        ``(P,)`` float32, P = ``POSE_DIM[kind]``.

    Raises:
        ValueError: For an unknown kind.
    """
    return np.array([rest for _, _, rest in _POSES[_checked_kind(kind)].values()], np.float32)


def pose_path(seed: int, frames: int, kind: str, fps: float = 25.0) -> np.ndarray:
    """Draw a smooth, lively path of poses.

    Sums of slow sinusoids move the puppet through most of its range; heads also talk and blink,
    tai-chi figures keep their feet on the floor. A longer path begins with the shorter one.

    Args:
        seed: A non-negative integer; equal seeds give equal paths.
        frames: Number of poses T, at least 1.
        kind: One of ``KINDS``.
        fps: Frames per second; the path is the same in seconds at any rate.

    Returns:
        ``(T, P)`` float32 within ``POSE_RANGES[kind]``.

    Raises:
        ValueError: For an unknown kind, a negative seed, or frames or fps that are not positive.
    """
    rng = _rng(seed, kind, 1)
    if frames < 1 or not fps > 0:
        raise ValueError(f"frames={frames}, fps={fps}: a path needs at least 1 frame and fps > 0")
    t = np.arange(frames, dtype=np.float64) / fps
    path = _head_path(rng, t) if kind == "head" else _taichi_path(rng, t)
    low, high = np.array(POSE_RANGES[kind]).T
    columns = np.stack([path[name] for name in POSE_NAMES[kind]], axis=1)
    return np.clip(columns, low, high).astype(np.float32)


def render(identity: np.ndarray, pose: np.ndarray, size: int, kind: str) -> np.ndarray:
    """Draw an identity in one or several poses.

    Args:
        identity: ``(IDENTITY_DIM,)`` in [0, 1], see ``identity``.
        pose: ``(T, P)`` or ``(P,)`` within ``POSE_RANGES[kind]``, P = ``POSE_DIM[kind]``.
        size: Side of the square picture in pixels, 32 to 512.
        kind: One of ``KINDS``.

    Returns:
        uint8 ``(T, size, size, 3)`` RGB, or ``(size, size, 3)`` for a single pose.

    Raises:
        ValueError: For an unknown kind, wrong shapes, values outside their ranges, or a size
            outside 32 to 512.
    """
    _checked_kind(kind)
    if int(size) != size or not SIZES[0] <= size <= SIZES[1]:
        raise ValueError(f"size {size}: puppets are drawn at {SIZES[0]} to {SIZES[1]} pixels")
    size = int(size)
    who = _Identity(_checked_identity(identity))
    poses = _checked_pose(pose, kind)
    background = _background(who, size, kind)
    draw = _draw_head if kind == "head" else _draw_taichi
    frames = np.empty((len(poses), size, size, 3), np.uint8)
    # About 64k pixels at once: enough to hide NumPy's overhead, small enough for the cache.
    step = max(1, 65536 // (size * size))
    for start in range(0, len(poses), step):
        part = poses[start : start + step]
        canvas = _Canvas(background, len(part))
        columns = part.T[:, :, None, None]
        draw(canvas, who, dict(zip(POSE_NAMES[kind], columns, strict=True)))
        frames[start : start + step] = canvas.pixels()
    return frames if np.ndim(pose) == 2 else frames[0]


def _checked_kind(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: choose one of {', '.join(KINDS)}")
    return kind


def _checked_identity(identity: np.ndarray) -> np.ndarray:
    values = np.asarray(identity, np.float32)
    if values.shape != (IDENTITY_DIM,):
        raise ValueError(f"identity has shape {values.shape}: expected ({IDENTITY_DIM},)")
    if not np.all((values >= 0) & (values <= 1)):
        raise ValueError("identity has entries outside [0, 1]: draw one with identity(seed, kind)")
    return values


def _checked_pose(pose: np.ndarray, kind: str) -> np.ndarray:
    values = np.asarray(pose, np.float32)
    dim = POSE_DIM[kind]
    if values.ndim not in (1, 2) or values.shape[-1] != dim:
        raise ValueError(
            f"pose has shape {values.shape}: kind {kind!r} needs ({dim},) or (T, {dim})"
        )
    values = values.reshape(-1, dim)
    low, high = np.array(POSE_RANGES[kind], np.float32).T
    outside = ~((values >= low - 1e-4) & (values <= high + 1e-4)).all(axis=0)
    if outside.any():
        at = int(np.argmax(outside))
        column = values[:, at]
        raise ValueError(
            f"pose coordinate {POSE_NAMES[kind][at]!r} spans {column.min():.3g} to "
            f"{column.max():.3g}: allowed are {low[at]:.3g} to {high[at]:.3g}"
        )
    return values


def _rng(seed: int, kind: str, stream: int) -> np.random.Generator:
    if int(seed) != seed or seed < 0:
        raise ValueError(f"seed {seed}: a seed is a non-negative integer")
    entropy = [int(seed), KINDS.index(_checked_kind(kind)), stream]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


# Motion


def _wave(
    rng: np.random.Generator, t: np.ndarray, slow: float, fast: float, terms: int = 3
) -> np.ndarray:
    """A smooth signal in (-1, 1): sinusoids between ``slow`` and ``fast`` Hz, softly limited."""
    rate = slow * (fast / slow) ** ((np.arange(terms) + rng.random(terms)) / terms)
    phase = _TAU * rng.random(terms)
    weight = rate**-0.5
    weight *= 1.5 / np.sqrt(np.sum(weight**2))
    return np.tanh(np.sin(_TAU * t[:, None] * rate + phase) @ weight)


def _smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    x = np.clip((x - low) / (high - low), 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def _head_path(rng: np.random.Generator, t: np.ndarray) -> dict[str, np.ndarray]:
    yaw = _wave(rng, t, 0.12, 0.45)
    syllables = 0.5 + 0.5 * _wave(rng, t, 1.2, 3.2)
    talking = _smoothstep(_wave(rng, t, 0.1, 0.5), -0.9, -0.2)
    gaze_x, gaze_y = _wave(rng, t, 0.2, 0.7), _wave(rng, t, 0.2, 0.7)
    smile = _wave(rng, t, 0.1, 0.4)
    path = {
        "yaw": 0.7 * yaw,
        "pitch": 0.38 * _wave(rng, t, 0.12, 0.5),
        "roll": 0.32 * _wave(rng, t, 0.1, 0.4),
        "x": 0.17 * _wave(rng, t, 0.08, 0.35),
        "y": 0.09 * _wave(rng, t, 0.1, 0.45),
        "mouth_open": talking * syllables,
        "smile": 0.3 + 0.7 * smile,
        "gaze_x": 0.6 * gaze_x + 0.4 * yaw,
        "gaze_y": 0.8 * gaze_y,
        "brows": _wave(rng, t, 0.15, 0.6),
    }
    closed = np.zeros_like(t)
    blink = 0.3
    while blink < t[-1] + 1.0:
        closed = np.maximum(closed, np.exp(-(((t - blink) / 0.09) ** 4)))
        blink += 0.9 + rng.exponential(1.5)
    lids = 0.86 + 0.12 * path["brows"] - 0.1 * np.maximum(path["smile"], 0.0)
    path["left_eye"] = path["right_eye"] = lids * (1.0 - closed)
    return path


# Lengths of the tai-chi figure in scene units, and its limb angles when standing at ease.
_THIGH, _SHIN, _UPPER_ARM, _FOREARM = 0.36, 0.35, 0.26, 0.24
_TORSO, _HIP_WIDTH, _SHOULDER_WIDTH = 0.50, 0.10, 0.185
_FLOOR, _ANKLE = 0.80, 0.05
_REST_THIGH, _REST_KNEE, _REST_ARM, _REST_ELBOW = 0.24, 0.22, 0.28, 0.12
_HIP_HEIGHT = _FLOOR - _ANKLE - _THIGH * np.cos(_REST_THIGH) - _SHIN * np.cos(0.02)


def _taichi_path(rng: np.random.Generator, t: np.ndarray) -> dict[str, np.ndarray]:
    sway = _wave(rng, t, 0.1, 0.3, terms=2)
    rate = 0.13 + 0.12 * rng.random()
    cycle = _TAU * (rate * t + rng.random()) + 1.2 * _wave(rng, t, 0.05, 0.2, terms=2)
    reach = 0.75 + 0.25 * _wave(rng, t, 0.08, 0.3)
    lag = np.pi + 0.6 * _wave(rng, t, 0.05, 0.15, terms=2)
    path = {
        "x": 0.2 * sway,
        "y": 0.07 + 0.06 * _wave(rng, t, 0.12, 0.35),
        "lean": 0.09 * sway + 0.08 * _wave(rng, t, 0.1, 0.3),
        "twist": 0.55 * _wave(rng, t, 0.1, 0.3),
        "head_turn": 0.9 * _wave(rng, t, 0.1, 0.4),
        "near_shoulder": 0.62 + 1.25 * reach * np.sin(cycle),
        "near_elbow": 0.85 + 0.85 * reach * np.sin(cycle - 1.3),
        "far_shoulder": 0.85 + 1.1 * reach * np.sin(cycle + lag),
        "far_elbow": 0.75 + 0.75 * reach * np.sin(cycle + lag - 1.3),
    }
    stance = 0.02 + 0.10 * rng.random()
    step = _wave(rng, t, 0.1, 0.3, terms=2)
    for side, sign in (("far", -1.0), ("near", 1.0)):
        # A foot is lifted only while the weight is on the other leg.
        lift = _smoothstep(-sign * sway, 0.35, 0.95) * _smoothstep(step, -0.2, 0.7)
        hip_x = path["x"] + sign * _HIP_WIDTH * np.cos(path["twist"])
        rest_x = _HIP_WIDTH + _THIGH * np.sin(_REST_THIGH) + _SHIN * np.sin(0.02)
        foot_x = sign * (rest_x + stance + 0.06 * lift)
        drop = _FLOOR - _ANKLE - 0.16 * lift - (_HIP_HEIGHT + path["y"])
        path[f"{side}_hip"], path[f"{side}_knee"] = _bend(sign * (foot_x - hip_x), drop)
    return path


def _bend(outward: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hip and knee angles, relative to rest, that put the ankle where it should be."""
    reach = np.minimum(np.hypot(outward, down), (_THIGH + _SHIN) * 0.999)
    knee = np.pi - np.arccos((_THIGH**2 + _SHIN**2 - reach**2) / (2 * _THIGH * _SHIN))
    inner = np.arccos((_THIGH**2 + reach**2 - _SHIN**2) / (2 * _THIGH * reach))
    return np.arctan2(outward, down) + inner - _REST_THIGH, knee - _REST_KNEE


# Colour


def _oklch(lightness: float, chroma: float, hue: float) -> np.ndarray:
    """OKLCH (lightness 0 to 1, chroma, hue in degrees) as sRGB in [0, 1], (3,)."""
    a, b = chroma * np.cos(np.radians(hue)), chroma * np.sin(np.radians(hue))
    lms = np.array(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    linear = (
        np.array(
            [
                [4.0767416621, -3.3077115913, 0.2309699292],
                [-1.2684380046, 2.6097574011, -0.3413193965],
                [-0.0041960863, -0.7034186147, 1.7076147010],
            ]
        )
        @ lms**3
    )
    linear = np.clip(linear, 0.0, 1.0)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return encoded.astype(np.float32)


def _shade(colour: np.ndarray, amount: float) -> np.ndarray:
    """Darker (negative) or lighter (positive) by a share of the way to warm black or white."""
    target = np.array([1.0, 0.98, 0.95] if amount > 0 else [0.10, 0.05, 0.12], np.float32)
    return colour + abs(amount) * (target - colour)


def _blend(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    return a + np.float32(share) * (b - a)


# Lightness, chroma and hue of skin from light to deep, and of hair.
_SKIN = ((0.90, 0.040, 60), (0.85, 0.062, 58), (0.79, 0.075, 60), (0.71, 0.085, 58),
         (0.61, 0.085, 54), (0.51, 0.078, 50), (0.42, 0.062, 46))  # fmt: skip
_HAIR = ((0.22, 0.015, 60), (0.30, 0.045, 50), (0.38, 0.07, 50), (0.48, 0.10, 55),
         (0.55, 0.14, 45), (0.78, 0.11, 85), (0.86, 0.07, 90), (0.72, 0.01, 250),
         (0.40, 0.11, 25), (0.45, 0.10, 300))  # fmt: skip
_IRIS = ((0.36, 0.07, 50), (0.48, 0.10, 65), (0.55, 0.11, 145), (0.58, 0.11, 240),
         (0.50, 0.05, 250), (0.30, 0.04, 45))  # fmt: skip

_HAIR_STYLES = ("short", "long", "bun", "curly", "bald", "cap", "bob", "side")
_PATTERNS = ("plain", "stripes", "dots", "check")
_BACKGROUNDS = ("gradient", "stripes", "bokeh", "tiles", "landscape")


class _Identity:
    """An identity vector as choices, proportions and colours."""

    def __init__(self, values: np.ndarray) -> None:
        self.raw = dict(zip(IDENTITY_NAMES, (float(v) for v in values), strict=True))
        self.hair_style = self.choose("hair_style", _HAIR_STYLES)
        self.pattern = self.choose("cloth_pattern", _PATTERNS)
        self.background = self.choose("background_style", _BACKGROUNDS)

        tone = self.raw["skin"] * (len(_SKIN) - 1.001)
        lower, upper = _SKIN[int(tone)], _SKIN[int(tone) + 1]
        light, chroma, hue = (a + (tone % 1.0) * (b - a) for a, b in zip(lower, upper, strict=True))
        hue += 14.0 * (self.raw["undertone"] - 0.5)
        self.skin_light = light
        self.skin = _oklch(light, chroma, hue)
        self.skin_bright = _oklch(min(light + 0.05, 0.95), chroma * 0.9, hue + 4)
        self.skin_shadow = _oklch(light - 0.11, chroma * 1.25, hue - 12)
        self.skin_line = _oklch(light - 0.24, chroma * 1.2, hue - 20)
        self.blush = _oklch(light - 0.06, chroma + 0.07, 25)
        lip = self.span("lip_colour", 0.05, 0.13)
        self.lips = _oklch(light * 0.75 - 0.02, 0.06 + lip * 0.6, 22)

        hair = list(_HAIR[int(self.raw["hair_colour"] * len(_HAIR) * 0.9999)])
        if abs(hair[0] - light) < 0.10:  # keep the hairline readable
            hair[0] = max(0.18, light - 0.17) if light > 0.55 else hair[0] - 0.16
        self.hair = _oklch(*hair)
        self.hair_dark = _oklch(max(hair[0] - 0.09, 0.12), hair[1], hair[2] - 6)
        self.hair_light = _oklch(hair[0] + 0.09, hair[1] * 1.05, hair[2] + 6)
        self.iris = _oklch(*_IRIS[int(self.raw["eye_colour"] * len(_IRIS) * 0.9999)])

        # Backgrounds keep clear of the hue of skin, and of its lightness where they can.
        self.ground_hue = 115.0 + 240.0 * self.raw["background_colour"]
        deep = light > 0.68 and hair[0] > 0.33 and self.raw["background_detail"] < 0.5
        self.ground_light = 0.47 if deep else (0.80 if light > 0.68 else 0.87)
        self.cloth_hue = self.ground_hue + 110.0 + 140.0 * self.raw["cloth_colour"]
        cloth_light = 0.74 if deep else 0.38 + 0.22 * self.raw["cloth_accent"]
        self.cloth = _oklch(cloth_light, 0.115, self.cloth_hue)
        self.cloth_dark = _oklch(cloth_light - 0.10, 0.11, self.cloth_hue - 8)
        self.cloth_light = _oklch(cloth_light + 0.07, 0.11, self.cloth_hue + 8)
        self.trousers = _oklch(0.36 if cloth_light > 0.6 else 0.80, 0.03, self.ground_hue + 150)
        accent = 0.93 if self.raw["cloth_accent"] < 0.6 else 0.82
        self.accent = _oklch(accent, 0.05 + 0.07 * (accent < 0.9), self.cloth_hue + 60)

    def choose(self, name: str, options: Sequence[str]) -> str:
        return options[min(int(self.raw[name] * len(options)), len(options) - 1)]

    def span(self, name: str, low: float, high: float) -> float:
        return low + (high - low) * self.raw[name]


# Painting


@dataclass
class _Patch:
    """A plane in the picture: screen = origin + (u, v) through a 2 x 2 map, each (T, 1, 1)."""

    x: Any
    y: Any
    xu: Any
    xv: Any
    yu: Any
    yv: Any

    def at(self, u: Any, v: Any, uu: Any = 1.0, uv: Any = 0.0, vu: Any = 0.0, vv: Any = 1.0):
        """The plane with its origin at (u, v) of this one, its axes mapped by a 2 x 2 matrix."""
        return _Patch(
            self.x + self.xu * u + self.xv * v,
            self.y + self.yu * u + self.yv * v,
            self.xu * uu + self.xv * vu,
            self.xu * uv + self.xv * vv,
            self.yu * uu + self.yv * vu,
            self.yu * uv + self.yv * vv,
        )

    def turned(self, angle: Any):
        """The plane turned clockwise by an angle in radians."""
        cos, sin = np.cos(angle), np.sin(angle)
        return self.at(0.0, 0.0, cos, -sin, sin, cos)


class _Canvas:
    """T pictures being painted, planar float32 (3, T, H, W) in [0, 1]."""

    def __init__(self, background: np.ndarray, frames: int) -> None:
        self.size = background.shape[-1]
        self.pixel = 2.0 / self.size
        self.rgb = np.repeat(background[:, None], frames, axis=1)
        centres = (np.arange(self.size, dtype=np.float32) + 0.5) * np.float32(self.pixel) - 1.0
        self.x, self.y = centres[None, None, :], centres[None, :, None]

    def screen(self) -> _Patch:
        """The plane of the picture itself."""
        one = np.ones((self.rgb.shape[1], 1, 1), np.float32)
        return _Patch(0.0 * one, 0.0 * one, one, 0.0 * one, 0.0 * one, one)

    def layer(self, patch: _Patch, left: Any, top: Any, right: Any, bottom: Any) -> "_Layer":
        """Open the part of the picture that a box of a plane covers in any of the frames."""
        u, v = 0.5 * (left + right), 0.5 * (top + bottom)
        du, dv = 0.5 * (right - left), 0.5 * (bottom - top)
        x = patch.x + patch.xu * u + patch.xv * v
        y = patch.y + patch.yu * u + patch.yv * v
        dx = np.abs(patch.xu) * du + np.abs(patch.xv) * dv
        dy = np.abs(patch.yu) * du + np.abs(patch.yv) * dv
        return _Layer(self, patch, self._span(x - dx, x + dx), self._span(y - dy, y + dy))

    def _span(self, low: Any, high: Any) -> slice:
        start = int(np.floor((np.min(low) + 1.0) / self.pixel - 1.0))
        stop = int(np.ceil((np.max(high) + 1.0) / self.pixel + 1.0))
        return slice(min(max(start, 0), self.size), min(max(stop, 0), self.size))

    def mask(self) -> np.ndarray:
        """An empty coverage map (T, H, W)."""
        return np.zeros(self.rgb.shape[1:], np.float32)

    def pixels(self) -> np.ndarray:
        """The pictures as uint8 (T, H, W, 3)."""
        levels = np.clip(self.rgb, 0.0, 1.0) * np.float32(255.0) + np.float32(0.5)
        return levels.astype(np.uint8).transpose(1, 2, 3, 0)


class _Layer:
    """A window of a canvas with the coordinates (u, v) of a plane at its pixels."""

    def __init__(self, canvas: _Canvas, patch: _Patch, xs: slice, ys: slice) -> None:
        self.window = (slice(None), ys, xs)
        self.rgb = canvas.rgb[:, :, ys, xs]
        dx, dy = canvas.x[:, :, xs] - patch.x, canvas.y[:, ys] - patch.y
        inverse = 1.0 / (patch.xu * patch.yv - patch.xv * patch.yu)
        self.u = (patch.yv * inverse) * dx - (patch.xv * inverse) * dy
        self.v = (patch.xu * inverse) * dy - (patch.yu * inverse) * dx
        self.per_pixel = np.sqrt(np.abs(1.0 / inverse)) / np.float32(canvas.pixel)

    def cover(self, distance: Any, soft: float = 0.0) -> np.ndarray:
        """Share of each pixel inside; ``soft`` widens the edge (in units of the plane)."""
        if soft:
            return _smoothstep(distance, 0.5 * soft, -0.5 * soft)
        return np.clip(0.5 - distance * self.per_pixel, 0.0, 1.0)

    def paint(
        self, distance: Any, colour: Any, opacity: Any = 1.0, soft: float = 0.0, clip: Any = None
    ) -> np.ndarray:
        """Paint the inside of a shape; returns its coverage.

        ``clip`` limits the paint to another coverage, of this window or of the whole canvas.
        """
        alpha = self.cover(distance, soft) * opacity
        if clip is not None:
            alpha = alpha * (clip if clip.shape == alpha.shape else clip[self.window])
        for plane, value in zip(self.rgb, colour, strict=True):
            plane += alpha * (value - plane)
        return alpha


def _ellipse(u: Any, v: Any, ru: Any, rv: Any) -> Any:
    """First-order distance to an ellipse around the origin."""
    a, b = u / ru, v / rv
    inside = a * a + b * b - 1.0
    a, b = a / ru, b / rv
    return 0.5 * inside / np.sqrt(a * a + b * b + np.float32(1e-6))


def _limb(u: Any, v: Any, au: Any, av: Any, ra: Any, bu: Any, bv: Any, rb: Any) -> Any:
    """Distance to a tapered capsule from a (radius ra) to b (radius rb)."""
    du, dv = bu - au, bv - av
    pu, pv = u - au, v - av
    along = np.clip((pu * du + pv * dv) / (du * du + dv * dv + 1e-9), 0.0, 1.0)
    pu, pv = pu - along * du, pv - along * dv
    return np.sqrt(pu * pu + pv * pv) - (ra + along * (rb - ra))


def _merge(a: Any, b: Any, width: float) -> Any:
    """Union of two shapes with a fillet of the given width."""
    near = np.maximum(width - np.abs(a - b), 0.0)
    return np.minimum(a, b) - near * near * (0.25 / width)


def _between(v: Any, top: Any, bottom: Any, slope: Any) -> Any:
    """Distance to the band between two curves v = top(u) and v = bottom(u) of similar slope."""
    return np.maximum(top - v, v - bottom) / np.sqrt(1.0 + slope * slope)


# Backgrounds


def _background(who: _Identity, size: int, kind: str) -> np.ndarray:
    """The scene behind a puppet, (3, size, size) float32."""
    hue, light = who.ground_hue, who.ground_light
    base = np.ones((3, 1, 1), np.float32)
    canvas = _Canvas(np.broadcast_to(base, (3, size, size)), 1)
    page = canvas.layer(canvas.screen(), -1.0, -1.0, 1.0, 1.0)
    u, v = page.u, page.v
    everywhere = np.full_like(u, -1.0)
    page.paint(everywhere, _oklch(light, 0.075, hue))
    detail = who.raw["background_detail"]
    bright, dim = _oklch(light + 0.06, 0.06, hue + 14), _oklch(light - 0.07, 0.085, hue - 14)
    rng = np.random.Generator(np.random.PCG64(int(detail * 2**24)))
    style = who.background
    if style == "gradient":
        page.paint(v + 0.35 * u - 0.1, dim, soft=2.6, opacity=1.0)
        page.paint(_ellipse(u, v + 0.15, 0.75, 0.75), bright, soft=0.9)
    elif style == "stripes":
        across = u * np.float32(np.cos(0.5 + detail)) + v * np.float32(np.sin(0.5 + detail))
        page.paint(np.abs((across * 2.2) % 1.0 - 0.5) / 2.2 - 0.11, bright, opacity=0.8)
    elif style == "bokeh":
        page.paint(v - 0.2, dim, soft=2.4)
        for _ in range(14):
            x, y, radius, tint = rng.random(4)
            layer = canvas.layer(
                canvas.screen().at(2.2 * x - 1.1, 2.2 * y - 1.1), -0.3, -0.3, 0.3, 0.3
            )
            radius = 0.09 + 0.17 * radius
            shape = _ellipse(layer.u, layer.v, radius, radius)
            layer.paint(shape, _oklch(light + 0.1, 0.08, hue + 90 * (tint - 0.5)), 0.4, soft=0.04)
    elif style == "tiles":
        pitch = 0.4
        row = np.floor(v / pitch)
        iu = ((u / pitch + 0.5 * (row % 2)) % 1.0 - 0.5) * pitch
        iv = (v / pitch % 1.0 - 0.5) * pitch
        box = np.maximum(np.abs(iu), np.abs(iv)) - 0.44 * pitch
        page.paint(box, bright, opacity=0.75)
        page.paint(v - 0.2, dim, soft=2.6, opacity=0.6)
    else:
        page.paint(everywhere, _oklch(0.88, 0.05, 235))
        page.paint(v + 0.1, _oklch(0.94, 0.045, 80), soft=1.4)
        page.paint(_ellipse(u - 1.2 * detail + 0.6, v + 0.55, 0.17, 0.17), _oklch(0.96, 0.07, 95))
        for level, (depth, tone) in enumerate(((0.12, 0.74), (0.3, 0.66), (0.52, 0.57))):
            phase = _TAU * rng.random(2)
            ridge = depth - 0.16 * np.sin(2.3 * u + phase[0]) - 0.06 * np.sin(5.1 * u + phase[1])
            page.paint(ridge.astype(np.float32) - v, _oklch(tone, 0.07, 160 + 18 * level))
    if kind == "taichi":
        floor = _oklch(light - 0.16, 0.05, hue + 30)
        page.paint(0.52 - v, floor)
        page.paint(0.52 - v, _shade(floor, 0.25), soft=0.9, opacity=0.6, clip=page.cover(0.52 - v))
    page.paint(1.25 - np.sqrt(u * u + v * v), _shade(dim, -0.4), soft=1.1, opacity=0.45)
    return canvas.rgb[:, 0]


def _textured(layer: _Layer, who: _Identity, clip: np.ndarray, pitch: float) -> None:
    """Paint the pattern of the clothes over a coverage."""
    u, v = layer.u, layer.v
    if who.pattern == "stripes":
        layer.paint(np.abs((v / pitch) % 1.0 - 0.5) * pitch - 0.2 * pitch, who.accent, clip=clip)
    elif who.pattern == "dots":
        row = np.floor(v / pitch)
        iu = ((u / pitch + 0.5 * (row % 2)) % 1.0 - 0.5) * pitch
        iv = (v / pitch % 1.0 - 0.5) * pitch
        layer.paint(np.sqrt(iu * iu + iv * iv) - 0.24 * pitch, who.accent, clip=clip)
    elif who.pattern == "check":
        for w in (u, v):
            band = np.abs((w / pitch) % 1.0 - 0.5) * pitch - 0.25 * pitch
            layer.paint(band, who.accent, opacity=0.35, clip=clip)


# Talking head


class _Skull:
    """A head turned by yaw and pitch: where its points appear, and the planes touching them."""

    def __init__(self, plane: _Patch, yaw: Any, pitch: Any, radii: tuple[float, float, float]):
        self.plane, self.radii = plane, radii
        self.cos_yaw, self.sin_yaw = np.cos(yaw), np.sin(yaw)
        self.cos_pitch, self.sin_pitch = np.cos(pitch), np.sin(pitch)

    def point(self, x: Any, y: Any, z: Any) -> tuple[Any, Any, Any]:
        """Turn a point (z towards the viewer) into the plane of the head: (u, v, depth)."""
        u = x * self.cos_yaw + z * self.sin_yaw
        depth = z * self.cos_yaw - x * self.sin_yaw
        return (
            u,
            y * self.cos_pitch - depth * self.sin_pitch,
            depth * self.cos_pitch + y * self.sin_pitch,
        )

    def depth(self, x: float, y: float) -> float:
        """Height of the face's surface in front of the middle of the head."""
        a, b, c = self.radii
        return c * float(np.sqrt(max(1.0 - (x / a) ** 2 - (y / b) ** 2, 0.05)))

    def touch(self, x: float, y: float, lift: float = 0.0) -> _Patch:
        """The plane touching the face at (x, y), raised by ``lift``."""
        a, b, c = self.radii
        z = self.depth(x, y)
        zu, zv = -c * c * x / (a * a * z), -c * c * y / (b * b * z)
        u, v, _ = self.point(x, y, z + lift)
        uu, vu, _ = self.point(1.0, 0.0, zu)
        uv, vv, _ = self.point(0.0, 1.0, zv)
        return self.plane.at(u, v, uu, uv, vu, vv)

    def width(self, x: float, z: float) -> Any:
        """Half-width of an ellipsoid with radii x (sideways) and z (depth) after turning."""
        return np.sqrt((x * self.cos_yaw) ** 2 + (z * self.sin_yaw) ** 2)

    def height(self, y: float, z: float) -> Any:
        """Half-height of an ellipsoid with radii y (upright) and z (depth) after nodding."""
        return np.sqrt((y * self.cos_pitch) ** 2 + (z * self.sin_pitch) ** 2)


def _draw_head(canvas: _Canvas, who: _Identity, pose: dict[str, np.ndarray]) -> None:
    wide, long = who.span("face_width", 0.93, 1.08), who.span("face_length", 0.95, 1.06)
    yaw, pitch, roll = pose["yaw"], pose["pitch"], pose["roll"]
    # The head hangs on the neck: it turns about a point below it.
    neck_x, neck_y = 0.62 * pose["x"], 0.44 + 0.5 * pose["y"]
    lift = 0.53 + 0.02 * pitch
    head = canvas.screen().at(
        neck_x + 0.38 * pose["x"] + lift * np.sin(roll) + 0.06 * yaw,
        neck_y + 0.5 * pose["y"] - lift * np.cos(roll) - 0.02 * pitch,
        0.50,
        0.0,
        0.0,
        0.50,
    )
    skull = _Skull(head.turned(roll), yaw, pitch, (0.82 * wide, 1.12 * long, 0.82))
    torso = canvas.screen().at(neck_x * 0.6, 0.06 + 0.35 * pose["y"]).turned(0.12 * roll)

    _draw_back_hair(canvas, who, skull, wide, long)
    _draw_torso(canvas, who, torso, head, yaw)
    face = _draw_face(canvas, who, skull, wide, long, pose)
    _draw_features(canvas, who, skull, face, pose, wide)
    _draw_front_hair(canvas, who, skull, wide, long)
    _draw_glasses(canvas, who, skull, wide)


def _draw_torso(
    canvas: _Canvas, who: _Identity, torso: _Patch, head: _Patch, yaw: np.ndarray
) -> None:
    build = who.span("build", 0.9, 1.1)
    layer = canvas.layer(torso, -1.2, 0.1, 1.2, 1.3)
    u, v = layer.u, layer.v
    # Neck: from under the head, wherever it is, to the collar.
    chin_x, chin_y = head.x - torso.x, head.y - torso.y + 0.2
    neck = _limb(u, v, chin_x, chin_y, 0.155 * build, 0.0, 0.52, 0.18 * build)
    layer.paint(neck, who.skin_shadow)
    side = np.abs(u)
    shape = _limb(side, v, 0.0, 0.56, 0.15, 0.50 * build, 0.74, 0.19)
    body = np.maximum(side - 0.60 * build - 0.10 * (v - 0.7), 0.72 - v)
    cloth = layer.paint(_merge(shape, body, 0.12), who.cloth)
    _textured(layer, who, cloth, 0.19)
    layer.paint(0.66 - v + 0.25 * u, who.cloth_dark, opacity=0.5, soft=0.7, clip=cloth)
    turn = 0.10 * np.sin(yaw)
    collar = who.choose("collar", ("crew", "v", "high"))
    if collar == "crew":
        opening = _ellipse(u - turn, v - 0.50, 0.235 * build, 0.135)
        layer.paint(opening - 0.045, who.cloth_light, clip=cloth)
        layer.paint(opening, who.skin_shadow, clip=cloth)
    elif collar == "v":
        depth = 0.76 - 1.25 * np.abs(u - turn)
        opening = (v - depth) * 0.62
        layer.paint(opening - 0.04, who.accent, clip=cloth)
        layer.paint(opening, who.skin, clip=cloth)
    else:
        band = _limb(u, v, turn * 0.4, 0.42, 0.165 * build, 0.0, 0.52, 0.21 * build)
        layer.paint(band, who.cloth_light)
        layer.paint(band, who.cloth_dark, opacity=0.6, soft=0.16, clip=layer.cover(v - 0.44))


def _draw_face(
    canvas: _Canvas,
    who: _Identity,
    skull: _Skull,
    wide: float,
    long: float,
    pose: dict[str, np.ndarray],
) -> np.ndarray:
    """Ears and the face's surface; returns the coverage of the face (T, H, W)."""
    opened = pose["mouth_open"]
    ears = [(sign, *skull.point(sign * 0.79 * wide, 0.06, -0.08)) for sign in (-1.0, 1.0)]

    def ear(sign: float, u: Any, v: Any, opacity: Any) -> None:
        layer = canvas.layer(skull.plane.at(u, v), -0.22, -0.3, 0.22, 0.3)
        shape = _ellipse(layer.u + 0.15 * sign * layer.v, layer.v, 0.15, 0.21)
        layer.paint(shape, who.skin, opacity)
        inner = _ellipse(layer.u - 0.01 * sign + 0.15 * sign * layer.v, layer.v, 0.08, 0.13)
        layer.paint(inner, who.skin_shadow, opacity, soft=0.08)
        if who.raw["accessory"] < 0.3:
            layer.paint(_ellipse(layer.u, layer.v - 0.25, 0.05, 0.05), who.accent, opacity)

    for sign, u, v, _ in ears:
        ear(sign, u, v, 1.0)

    jaw = who.span("jaw", 0.52, 0.66)
    layer = canvas.layer(skull.plane, -1.1, -1.2, 1.1, 1.35)
    cu, cv, _ = skull.point(0.0, -0.16, -0.06)
    ju, jv, _ = skull.point(0.0, 0.36 * long + 0.09 * opened, 0.18)
    top = _ellipse(
        layer.u - cu, layer.v - cv, skull.width(0.78 * wide, 0.84), skull.height(0.84, 0.84)
    )
    chin = _ellipse(layer.u - ju, layer.v - jv, skull.width(jaw * wide, 0.6), 0.62 * long)
    shape = _merge(top, chin, 0.3)
    face = canvas.mask()
    cover = layer.paint(shape, who.skin)
    face[layer.window] = cover
    # Light from the upper left: a soft core shadow on the right and under the cheekbones.
    layer.paint(
        _ellipse(layer.u + 0.26, layer.v + 0.16, 0.92, 1.02) * -1.0,
        who.skin_shadow,
        opacity=0.75,
        soft=0.55,
        clip=cover,
    )
    brow = skull.touch(-0.12, -0.45)
    light = canvas.layer(brow, -0.6, -0.5, 0.6, 0.5)
    light.paint(_ellipse(light.u, light.v, 0.42, 0.28), who.skin_bright, 0.8, soft=0.4, clip=face)
    for sign in (-1.0, 1.0):
        cheek = canvas.layer(skull.touch(sign * 0.46 * wide, 0.3), -0.3, -0.3, 0.3, 0.3)
        strength = 0.5 + 0.25 * np.maximum(pose["smile"], 0.0)
        cheek.paint(
            _ellipse(cheek.u, cheek.v, 0.16, 0.12), who.blush, strength, soft=0.2, clip=face
        )
    for sign, u, v, depth in ears:
        ear(sign, u, v, _smoothstep(depth, 0.05, 0.3))
    return face


def _draw_features(
    canvas: _Canvas,
    who: _Identity,
    skull: _Skull,
    face: np.ndarray,
    pose: dict[str, np.ndarray],
    wide: float,
) -> None:
    if who.raw["beard"] > 0.72 and who.hair_style not in ("long", "bun", "bob"):
        _draw_beard(canvas, who, skull, face, pose)
    spacing = who.span("eye_spacing", 0.29, 0.35) * wide
    for sign, name in ((-1.0, "left_eye"), (1.0, "right_eye")):
        _draw_eye(canvas, who, skull.touch(sign * spacing, -0.08), face, pose, name)
        brow = skull.touch(sign * (spacing + 0.01), -0.36)
        layer = canvas.layer(brow, -0.4, -0.32, 0.4, 0.24)
        u, v = layer.u * sign, layer.v + 0.085 * pose["brows"]
        bend = 0.9 * (u - 0.03) ** 2 - who.span("brow_tilt", -0.12, 0.16) * u
        bend = bend + 0.07 * pose["brows"] * u
        half = who.span("brow_weight", 0.028, 0.055) * (1.0 - 0.9 * (u - 0.02))
        line = np.maximum(np.abs(v - bend) - half, np.abs(u - 0.02) - 0.24)
        layer.paint(line, _blend(who.hair_dark, who.skin_line, 0.15), clip=face)
    _draw_mouth(canvas, who, skull.touch(0.0, 0.53, 0.03), face, pose)
    _draw_nose(canvas, who, skull, face)


def _draw_eye(
    canvas: _Canvas,
    who: _Identity,
    patch: _Patch,
    face: np.ndarray,
    pose: dict[str, np.ndarray],
    name: str,
) -> None:
    size = who.span("eye_size", 0.92, 1.12)
    half, opened = 0.20 * size, pose[name]
    layer = canvas.layer(patch, -0.3, -0.3, 0.3, 0.22)
    u, v = layer.u, layer.v
    s = u / half
    arch = 1.0 - s * s
    upper = (0.05 - 0.23 * size * opened) * arch
    lower = (0.055 + 0.055 * opened) * arch
    slope = s * ((0.46 * size * opened - 0.1) / half)
    # Lid: a soft socket shadow that also reads as the closed lid.
    layer.paint(_ellipse(u, v + 0.06, 0.27, 0.2), who.skin_shadow, 0.55, soft=0.2, clip=face)
    lens = _between(v, upper, lower, slope)
    white = layer.paint(lens, (0.97, 0.96, 0.95), clip=face)
    gaze_u, gaze_v = 0.085 * pose["gaze_x"], -0.03 + 0.05 * pose["gaze_y"]
    away = np.sqrt((u - gaze_u) ** 2 + (v - gaze_v) ** 2)
    layer.paint(away - 0.125 * size, who.iris, clip=white)
    layer.paint(np.abs(away - 0.118 * size) - 0.012, _shade(who.iris, -0.5), clip=white)
    layer.paint(away - 0.068 * size, (0.05, 0.03, 0.05), clip=white)
    glint = np.sqrt((u - gaze_u + 0.045) ** 2 + (v - gaze_v + 0.05) ** 2)
    layer.paint(glint - 0.034, (1.0, 1.0, 1.0), clip=white)
    layer.paint(upper + 0.05 - v, (0.3, 0.25, 0.3), 0.0, clip=white)
    stroke = np.abs(v - upper) / np.sqrt(1.0 + slope * slope)
    lash = np.maximum(stroke - 0.026, np.abs(u) - half * 1.04)
    layer.paint(
        lash, _blend(who.skin_line, np.array([0.08, 0.05, 0.07], np.float32), 0.75), clip=face
    )


def _draw_nose(canvas: _Canvas, who: _Identity, skull: _Skull, face: np.ndarray) -> None:
    size = who.span("nose_size", 0.85, 1.2)
    bu, bv, _ = skull.point(0.0, -0.08, skull.depth(0.0, -0.08) + 0.01)
    tu, tv, _ = skull.point(0.0, 0.22, skull.depth(0.0, 0.22) + 0.17 * size)
    layer = canvas.layer(skull.plane.at(tu, tv), -0.35, -0.55, 0.35, 0.25)
    u, v = layer.u, layer.v
    ridge = _limb(u - 0.05, v, bu - tu, bv - tv, 0.02, 0.0, 0.0, 0.07 * size)
    layer.paint(ridge, who.skin_shadow, 0.7, soft=0.1, clip=face)
    wing = _ellipse(np.abs(u) - 0.085 * size, v - 0.045, 0.06 * size, 0.05)
    ball = _merge(_ellipse(u, v, 0.10 * size, 0.085 * size), wing, 0.06)
    layer.paint(ball - 0.012, who.skin_shadow, 0.9, soft=0.06, clip=face)
    layer.paint(_ellipse(u + 0.01, v + 0.01, 0.1 * size, 0.08 * size), who.skin, 1.0, soft=0.06)
    layer.paint(_ellipse(u + 0.03, v + 0.03, 0.045, 0.035), who.skin_bright, 0.9, soft=0.05)
    nostril = _ellipse(np.abs(u) - 0.06 * size, v - 0.075 * size, 0.034, 0.018)
    layer.paint(nostril, who.skin_line, 0.85, clip=face)


def _draw_mouth(
    canvas: _Canvas, who: _Identity, patch: _Patch, face: np.ndarray, pose: dict[str, np.ndarray]
) -> None:
    opened, smile = pose["mouth_open"], pose["smile"]
    half = who.span("mouth_width", 0.25, 0.31) * (1.0 + 0.14 * smile - 0.2 * opened)
    layer = canvas.layer(patch, -0.46, -0.3, 0.46, 0.52)
    u, v = layer.u, layer.v
    s = u / half
    arch = 1.0 - s * s
    middle = 0.10 * smile * arch - 0.05 * smile
    upper = middle - 0.05 * opened * arch
    lower = middle + 0.27 * opened * arch
    slope = s * (0.2 * smile + 0.3 * opened) / half
    bow = np.exp(-((u / 0.06) ** 2))
    lips_top = upper - (0.065 + 0.025 * np.abs(s) * 0 - 0.018 * bow) * arch
    lips_low = lower + 0.085 * arch
    lips = _between(v, lips_top, lips_low, slope)
    layer.paint(_ellipse(u, v - 0.2 - 0.27 * opened, 0.16, 0.06), who.skin_shadow, 0.6, 0.1, face)
    red = layer.paint(lips, who.lips, clip=face)
    layer.paint(lower + 0.045 - v, _shade(who.lips, 0.22), 0.55, 0.06, clip=red)
    hole = layer.paint(_between(v, upper, lower, slope), (0.22, 0.06, 0.09), clip=face)
    teeth = v - (upper + 0.085 * arch)
    layer.paint(teeth, (0.96, 0.94, 0.91), clip=hole)
    tongue = _ellipse(u, v - lower - 0.01, half * 0.62, 0.11)
    layer.paint(tongue, (0.78, 0.36, 0.38), clip=hole * layer.cover(-teeth))
    seam = np.maximum(np.abs(v - middle) / np.sqrt(1.0 + slope * slope) - 0.016, np.abs(u) - half)
    layer.paint(seam, _shade(who.lips, -0.55), 1.0 - _smoothstep(opened, 0.02, 0.15), clip=face)


def _draw_beard(
    canvas: _Canvas,
    who: _Identity,
    skull: _Skull,
    face: np.ndarray,
    pose: dict[str, np.ndarray],
) -> None:
    layer = canvas.layer(skull.plane, -1.0, -0.1, 1.0, 1.35)
    cu, cv, _ = skull.point(0.0, 0.12, 0.6)
    cheeks = _ellipse(layer.u - cu, layer.v - cv, skull.width(0.56, 0.4), 0.42)
    edge = _between(layer.v, 0.12 + 0.0 * layer.u, 2.0, 0.0)
    layer.paint(np.maximum(-cheeks, edge), who.hair, opacity=0.96, clip=face)
    lip = canvas.layer(skull.touch(0.0, 0.40, 0.08), -0.4, -0.2, 0.4, 0.25)
    bend = 0.9 * lip.u**2 - 0.02
    half = 0.06 * (1.0 - (lip.u / 0.34) ** 2)
    lip.paint(_between(lip.v, bend - half, bend + half, 1.4 * lip.u), who.hair, clip=face)


def _draw_back_hair(
    canvas: _Canvas, who: _Identity, skull: _Skull, wide: float, long: float
) -> None:
    style, volume = who.hair_style, who.span("hair_volume", 0.0, 0.1)
    u0, v0, _ = skull.point(0.0, -0.2, -0.25)
    layer = canvas.layer(skull.plane.at(u0, v0), -1.4, -1.5, 1.4, 1.8)
    u, v = layer.u, layer.v
    if style == "long":
        shape = _ellipse(u, v, 0.94 * wide + volume, 0.98)
        fall = np.maximum(np.abs(u) - 0.86 * wide - volume - 0.1 * v, np.maximum(-v, v - 1.35))
        layer.paint(_merge(shape, fall, 0.2), who.hair_dark)
    elif style == "bob":
        shape = _ellipse(u, v - 0.12, 0.98 * wide + volume, 1.05)
        layer.paint(np.maximum(shape, v - 0.92), who.hair_dark)
    elif style == "curly":
        angle = np.arctan2(v, u)
        bumps = 0.055 * np.cos(13.0 * angle)
        layer.paint(_ellipse(u, v + 0.05, 1.02 * wide + volume, 1.05) - bumps, who.hair_dark)
    elif style == "bun":
        layer.paint(_ellipse(u, v, 0.86 * wide, 0.92), who.hair_dark)
        bu, bv, _ = skull.point(0.0, -1.12, -0.25)
        ball = canvas.layer(skull.plane.at(bu, bv), -0.45, -0.45, 0.45, 0.45)
        radius = 0.31 + volume
        disc = ball.paint(_ellipse(ball.u, ball.v, radius, radius * 0.92), who.hair)
        glow = _ellipse(ball.u + 0.1, ball.v + 0.1, 0.16, 0.12)
        ball.paint(glow, who.hair_light, 0.7, soft=0.2, clip=disc)


def _draw_front_hair(
    canvas: _Canvas, who: _Identity, skull: _Skull, wide: float, long: float
) -> None:
    style, volume = who.hair_style, who.span("hair_volume", 0.0, 0.1)
    layer = canvas.layer(skull.plane, -1.3, -1.45, 1.3, 1.6)
    u, v = layer.u, layer.v
    cu, cv, _ = skull.point(0.0, -0.2, -0.1)
    rise = 0.93 + volume
    dome = _ellipse(u - cu, v - cv, skull.width(0.84 * wide + volume / 2, 0.9), rise)
    if style == "bald":
        return
    if style == "cap":
        _draw_cap(canvas, who, skull, wide, layer, dome)
        return
    # The face looks out of an opening that turns with it: turning shows more hair on one side.
    fu, fv, _ = skull.point(0.0, 0.28, 0.62)
    side = 1.0 if who.raw["fringe"] > 0.5 else -1.0
    opening = _ellipse(u - fu, v - fv, skull.width(0.66 * wide, 0.45), 0.86)
    if style in ("short", "side"):
        shift = 0.3 * side if style == "side" else 0.0
        lock = _ellipse(u - fu - shift, v - fv + 0.14, 0.62 * wide, 0.84)
        opening = np.maximum(opening, lock) if style == "side" else opening
        shape = np.maximum(np.maximum(dome, -opening), v - cv - 0.28)
    elif style == "curly":
        angle = np.arctan2(v - fv, u - fu)
        shape = np.maximum(dome - 0.04, -(opening - 0.05 * np.cos(11.0 * angle)))
        shape = np.maximum(shape, v - cv - 0.6)
    elif style == "bob":
        fringe = np.maximum(fv - 0.62 + 0.05 * np.cos(7.0 * (u - fu)) - v, opening)
        shape = np.maximum(dome - 0.03, -fringe)
        shape = np.maximum(shape, v - cv - 1.0)
    else:
        part = _ellipse(u - fu - 0.12 * side, v - fv, 0.7 * wide, 0.9)
        opening = np.maximum(opening, part)
        shape = np.maximum(dome - 0.02, -opening)
        if style == "bun":
            shape = np.maximum(shape, v - cv - 0.35)
    hair = layer.paint(shape, who.hair)
    layer.paint(_ellipse(u - cu + 0.3, v - cv + 0.55, 0.38, 0.2), who.hair_light, 0.75, 0.35, hair)
    layer.paint(-_ellipse(u - cu + 0.2, v - cv + 0.2, 0.98, 1.05), who.hair_dark, 0.8, 0.4, hair)
    if style == "long":
        for sign in (-1.0, 1.0):
            lu, lv, _ = skull.point(sign * 0.80 * wide, 0.1, 0.05)
            lock = _limb(u, v, lu, lv - 0.3, 0.13, lu * 1.05, 1.25, 0.2)
            layer.paint(lock, who.hair, soft=0.0)


def _draw_cap(
    canvas: _Canvas, who: _Identity, skull: _Skull, wide: float, layer: _Layer, dome: np.ndarray
) -> None:
    u, v = layer.u, layer.v
    fu, fv, _ = skull.point(0.0, -0.36, 0.80)
    cu, cv, _ = skull.point(0.0, -0.2, -0.1)
    sides = np.maximum(dome, np.maximum(v - cv - 0.25, -_ellipse(u - fu, v - fv - 0.5, 0.62, 0.9)))
    layer.paint(sides, who.hair)
    crown = np.maximum(dome - 0.05, v - fv - 0.35 * (u - fu) ** 2 + 0.05)
    cap = layer.paint(crown, who.cloth)
    layer.paint(-_ellipse(u - cu + 0.2, v - cv + 0.2, 0.98, 1.05), who.cloth_dark, 0.8, 0.4, cap)
    layer.paint(np.abs(u - fu) - 0.012, who.cloth_dark, 0.6, clip=cap)
    bu, bv, _ = skull.point(0.0, -0.42, 1.12)
    peak = _ellipse(u - bu, v - bv, skull.width(0.58 * wide, 0.3), 0.17)
    layer.paint(np.maximum(peak, fv - 0.12 - v), who.cloth_dark)
    layer.paint(np.maximum(peak + 0.03, fv - 0.14 - v), who.cloth_light, 0.5, soft=0.1)


def _draw_glasses(canvas: _Canvas, who: _Identity, skull: _Skull, wide: float) -> None:
    if who.raw["glasses"] < 0.68:
        return
    spacing = who.span("eye_spacing", 0.29, 0.35) * wide
    frame = (
        _shade(who.cloth, -0.45)
        if who.raw["accessory"] > 0.5
        else np.array([0.12, 0.1, 0.1], np.float32)
    )
    square = who.raw["glasses"] > 0.84
    for sign in (-1.0, 1.0):
        layer = canvas.layer(skull.touch(sign * spacing, -0.06, 0.08), -0.34, -0.34, 0.34, 0.34)
        u, v = layer.u, layer.v
        if square:
            corner = np.maximum(np.abs(u) - 0.16, 0.0), np.maximum(np.abs(v) - 0.10, 0.0)
            rim = np.sqrt(corner[0] ** 2 + corner[1] ** 2) - 0.11
        else:
            rim = _ellipse(u, v, 0.27, 0.25)
        layer.paint(rim, (0.9, 0.96, 1.0), 0.14)
        layer.paint(np.abs(rim) - 0.024, frame)
    layer = canvas.layer(skull.touch(0.0, -0.1, 0.06), -0.14, -0.1, 0.14, 0.1)
    bridge = np.abs(layer.v + 0.02 - 1.5 * layer.u**2) - 0.022
    gap = spacing - 0.25
    layer.paint(np.maximum(bridge, np.abs(layer.u) - gap), frame)


# Tai-chi figure


def _draw_taichi(canvas: _Canvas, who: _Identity, pose: dict[str, np.ndarray]) -> None:
    hip_x, hip_y = pose["x"], _HIP_HEIGHT + pose["y"]
    turn = np.cos(pose["twist"])
    screen = canvas.screen()
    lean = pose["lean"]
    chest_x, chest_y = hip_x + _TORSO * np.sin(lean), hip_y - _TORSO * np.cos(lean)
    shadow = canvas.layer(screen.at(hip_x, _FLOOR + 0.02), -0.6, -0.12, 0.6, 0.12)
    ground = np.array([0.1, 0.08, 0.15], np.float32)
    shadow.paint(_ellipse(shadow.u, shadow.v, 0.45, 0.06), ground, 0.35, soft=0.1)
    _draw_arm(canvas, who, screen, pose, "far", chest_x, chest_y, turn, lean)
    for side in ("far", "near"):
        _draw_leg(canvas, who, screen, pose, side, hip_x, hip_y, turn)
    body = _draw_tunic(canvas, who, screen.at(hip_x, hip_y).turned(lean), pose["twist"], turn)
    _draw_small_head(canvas, who, screen.at(chest_x, chest_y).turned(lean * 1.3), pose)
    _draw_arm(canvas, who, screen, pose, "near", chest_x, chest_y, turn, lean, body)


def _box(canvas: _Canvas, screen: _Patch, points: Sequence[tuple[Any, Any]], margin: float):
    xs, ys = np.concatenate([p[0] for p in points]), np.concatenate([p[1] for p in points])
    return canvas.layer(
        screen, xs.min() - margin, ys.min() - margin, xs.max() + margin, ys.max() + margin
    )


def _draw_arm(
    canvas: _Canvas,
    who: _Identity,
    screen: _Patch,
    pose: dict[str, np.ndarray],
    side: str,
    chest_x: Any,
    chest_y: Any,
    turn: Any,
    lean: Any,
    body: np.ndarray | None = None,
) -> None:
    sign = 1.0 if side == "near" else -1.0
    shoulder_x = chest_x + sign * _SHOULDER_WIDTH * turn
    shoulder_y = chest_y + 0.075 + sign * _SHOULDER_WIDTH * np.sin(lean)
    raise_ = _REST_ARM + pose[f"{side}_shoulder"]
    fold = raise_ - _REST_ELBOW * 0 + pose[f"{side}_elbow"] * 1.0
    # Raising opens the arm outwards; folding brings the forearm up and back over the chest.
    elbow_x = shoulder_x + sign * _UPPER_ARM * np.sin(raise_)
    elbow_y = shoulder_y + _UPPER_ARM * np.cos(raise_)
    fold = raise_ - _REST_ELBOW - pose[f"{side}_elbow"]
    hand_x = elbow_x + sign * _FOREARM * np.sin(fold)
    hand_y = elbow_y + _FOREARM * np.cos(fold)
    layer = _box(
        canvas, screen, ((shoulder_x, shoulder_y), (elbow_x, elbow_y), (hand_x, hand_y)), 0.17
    )
    u, v = layer.u, layer.v
    wrist_x, wrist_y = 0.85 * hand_x + 0.15 * elbow_x, 0.85 * hand_y + 0.15 * elbow_y
    upper = _limb(u, v, shoulder_x, shoulder_y, 0.085, elbow_x, elbow_y, 0.075)
    lower = _limb(u, v, elbow_x, elbow_y, 0.07, wrist_x, wrist_y, 0.082)
    sleeve = _merge(upper, lower, 0.05)
    if body is not None:
        layer.paint(sleeve - 0.01, _shade(who.cloth, -0.6), 0.5, soft=0.09, clip=body)
    skin = who.skin if side == "near" else who.skin_shadow
    tip_x, tip_y = hand_x + 0.3 * (hand_x - wrist_x), hand_y + 0.3 * (hand_y - wrist_y)
    layer.paint(_limb(u, v, wrist_x, wrist_y, 0.04, tip_x, tip_y, 0.052), skin)
    cloth = who.cloth if side == "near" else who.cloth_dark
    cover = layer.paint(sleeve, cloth)
    layer.paint(sleeve * -1.0 - 0.05, who.cloth_dark, 0.6, soft=0.06, clip=cover)
    cuff = _limb(u, v, wrist_x, wrist_y, 0.082, wrist_x, wrist_y + 1e-3, 0.082)
    layer.paint(cuff + 0.0, who.accent, 0.0, clip=cover)


def _draw_leg(
    canvas: _Canvas,
    who: _Identity,
    screen: _Patch,
    pose: dict[str, np.ndarray],
    side: str,
    hip_x: Any,
    hip_y: Any,
    turn: Any,
) -> None:
    sign = 1.0 if side == "near" else -1.0
    top_x = hip_x + sign * _HIP_WIDTH * turn
    thigh = _REST_THIGH + pose[f"{side}_hip"]
    shin = thigh - _REST_KNEE - pose[f"{side}_knee"]
    knee_x, knee_y = top_x + sign * _THIGH * np.sin(thigh), hip_y + _THIGH * np.cos(thigh)
    foot_x, foot_y = knee_x + sign * _SHIN * np.sin(shin), knee_y + _SHIN * np.cos(shin)
    layer = _box(canvas, screen, ((top_x, hip_y), (knee_x, knee_y), (foot_x, foot_y)), 0.2)
    u, v = layer.u, layer.v
    shoe = _limb(
        u, v, foot_x - sign * 0.02, foot_y + 0.02, 0.05, foot_x + sign * 0.1, foot_y + 0.03, 0.035
    )
    layer.paint(shoe, (0.16, 0.14, 0.18))
    upper = _limb(u, v, top_x, hip_y, 0.125, knee_x, knee_y, 0.10)
    lower = _limb(u, v, knee_x, knee_y, 0.10, foot_x, foot_y - 0.05, 0.085)
    trousers = _merge(upper, lower, 0.06)
    colour = who.trousers if side == "near" else _shade(who.trousers, -0.22)
    cover = layer.paint(trousers, colour)
    layer.paint(-trousers - 0.06, _shade(who.trousers, -0.35), 0.5, soft=0.08, clip=cover)


def _draw_tunic(
    canvas: _Canvas, who: _Identity, patch: _Patch, twist: Any, turn: Any
) -> np.ndarray:
    build = who.span("build", 0.92, 1.1)
    layer = canvas.layer(patch, -0.4, -0.65, 0.4, 0.32)
    u, v = layer.u, layer.v
    breadth = 0.75 + 0.25 * turn
    chest = _limb(
        np.abs(u), v, 0.05, -_TORSO + 0.06, 0.085, _SHOULDER_WIDTH * turn, -_TORSO + 0.085, 0.085
    )
    sides = np.abs(u) - (0.19 + 0.12 * np.clip(v + 0.1, 0.0, 1.0)) * build * breadth
    trunk = np.maximum(sides, np.maximum(-_TORSO + 0.05 - v, v - 0.2))
    shape = _merge(chest, trunk, 0.08)
    cover = layer.paint(shape, who.cloth)
    _textured(layer, who, cover, 0.13)
    layer.paint(0.05 - u - 0.3 * v - 0.1, who.cloth_dark, 0.6, soft=0.3, clip=cover)
    middle = 0.14 * np.sin(twist)
    layer.paint(np.abs(u - middle * (0.4 - v)) - 0.014, who.accent, clip=cover)
    sash = np.maximum(np.abs(v + 0.03) - 0.045, sides - 0.01)
    layer.paint(sash, who.accent)
    body = canvas.mask()
    body[layer.window] = cover
    return body


def _draw_small_head(
    canvas: _Canvas, who: _Identity, patch: _Patch, pose: dict[str, np.ndarray]
) -> None:
    turn = 0.85 * pose["head_turn"] + 0.25 * pose["twist"]
    layer = canvas.layer(patch, -0.3, -0.5, 0.3, 0.1)
    u, v = layer.u, layer.v
    layer.paint(_limb(u, v, 0.0, 0.03, 0.065, 0.0, -0.1, 0.055), who.skin_shadow)
    v = v + 0.2
    side = np.sin(turn)
    radius = 0.145
    if who.hair_style in ("long", "bob", "curly"):
        layer.paint(_ellipse(u + 0.02 * side, v - 0.03, 0.17, 0.185), who.hair_dark)
    if who.hair_style == "bun":
        layer.paint(_ellipse(u + 0.03 * side, v + 0.17, 0.06, 0.055), who.hair)
    face = layer.paint(_ellipse(u, v, radius * 0.93, radius * 1.05), who.skin)
    shade = -_ellipse(u + 0.04, v + 0.03, 0.16, 0.17)
    layer.paint(shade, who.skin_shadow, 0.7, soft=0.1, clip=face)
    cos = np.cos(turn)
    for sign in (-1.0, 1.0):
        eye = _ellipse(u - 0.1 * side - sign * 0.052 * cos, v - 0.01, 0.016, 0.024)
        layer.paint(eye, (0.08, 0.06, 0.08), clip=face)
        cheek = _ellipse(u - 0.1 * side - sign * 0.08 * cos, v - 0.06, 0.03, 0.022)
        layer.paint(cheek, who.blush, 0.6, soft=0.03, clip=face)
    s = (u - 0.1 * side) / 0.05
    mouth = np.maximum(np.abs(v - 0.085 + 0.018 * s * s) - 0.009, np.abs(s * 0.05) - 0.045 * cos)
    layer.paint(mouth, who.lips, clip=face)
    if who.hair_style != "bald":
        dome = _ellipse(u, v + 0.01, radius, radius * 1.12)
        opening = _ellipse(u - 0.075 * side, v - 0.06, 0.115, 0.14)
        hair = who.cloth if who.hair_style == "cap" else who.hair
        layer.paint(np.maximum(np.maximum(dome, -opening), v - 0.07), hair)
