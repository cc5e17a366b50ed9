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

import math
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
        "x": (-0.3, 0.3, 0.0),
        "y": (-0.05, 0.2, 0.0),
        "lean": (-0.25, 0.25, 0.0),
        "twist": (-0.7, 0.7, 0.0),
        "head_turn": (-1.0, 1.0, 0.0),
        "far_shoulder": (-0.6, 2.4, 0.0),
        "far_elbow": (-0.2, 2.0, 0.0),
        "near_shoulder": (-1.0, 2.4, 0.0),
        "near_elbow": (-0.2, 2.0, 0.0),
        "far_hip": (-0.4, 1.3, 0.0),
        "far_knee": (-0.2, 1.6, 0.0),
        "near_hip": (-0.4, 1.3, 0.0),
        "near_knee": (-0.2, 1.6, 0.0),
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
1 right), and joint angles in radians relative to standing at ease: shoulders (positive raises the
arm outwards), elbows (positive folds the forearm up), hips (positive opens the leg outwards), knees
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
    syllables = 0.5 + 0.5 * _wave(rng, t, 1.0, 2.2)
    talking = _smoothstep(_wave(rng, t, 0.1, 0.5), -0.9, -0.2)
    gaze_x, gaze_y = _wave(rng, t, 0.2, 0.7), _wave(rng, t, 0.2, 0.7)
    smile = _wave(rng, t, 0.1, 0.4)
    path = {
        "yaw": 0.24 * yaw,
        "pitch": 0.16 * _wave(rng, t, 0.12, 0.5),
        "roll": 0.34 * _wave(rng, t, 0.1, 0.4),
        "x": 0.16 * _wave(rng, t, 0.08, 0.35),
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
        # Further away it is 0 in double precision, too.
        near = slice(*np.searchsorted(t, (blink - 0.6, blink + 0.6)))
        closed[near] = np.maximum(closed[near], np.exp(-(((t[near] - blink) / 0.15) ** 4)))
        blink += 0.9 + rng.exponential(0.9)
    lids = 0.86 + 0.12 * path["brows"] - 0.1 * np.maximum(path["smile"], 0.0)
    path["left_eye"] = path["right_eye"] = lids * (1.0 - closed)
    return path


# Lengths of the tai-chi figure in scene units, and its limb angles when standing at ease.
_THIGH, _SHIN, _UPPER_ARM, _FOREARM = 0.38, 0.37, 0.26, 0.22
_TORSO, _HIP_WIDTH, _SHOULDER_WIDTH = 0.53, 0.10, 0.19
_FLOOR, _ANKLE = 0.86, 0.06
_REST_THIGH, _REST_KNEE, _REST_ARM, _REST_ELBOW = 0.24, 0.22, 0.36, 0.18
_STANDING = _THIGH * math.cos(_REST_THIGH) + _SHIN * math.cos(_REST_THIGH - _REST_KNEE)
_HIP_HEIGHT = _FLOOR - _ANKLE - _STANDING


def _taichi_path(rng: np.random.Generator, t: np.ndarray) -> dict[str, np.ndarray]:
    sway = _wave(rng, t, 0.1, 0.3, terms=2)
    rate = 0.13 + 0.12 * rng.random()
    cycle = _TAU * (rate * t + rng.random()) + 1.2 * _wave(rng, t, 0.05, 0.2, terms=2)
    reach = 0.75 + 0.25 * _wave(rng, t, 0.08, 0.3)
    lag = np.pi + 0.6 * _wave(rng, t, 0.05, 0.15, terms=2)
    path = {
        "x": 0.2 * sway,
        "y": 0.08 + 0.07 * _wave(rng, t, 0.12, 0.35),
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
        rest_x = _HIP_WIDTH + _THIGH * np.sin(_REST_THIGH)
        foot_x = sign * (rest_x + stance + 0.06 * lift)
        drop = _FLOOR - _ANKLE - 0.16 * lift - (_HIP_HEIGHT + path["y"])
        path[f"{side}_hip"], path[f"{side}_knee"] = _bend(sign * (foot_x - hip_x), drop)
    return path


def _bend(outward: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hip and knee angles, relative to rest, that put the ankle where it should be."""
    reach = np.minimum(np.hypot(outward, down), (_THIGH + _SHIN) * 0.99)
    knee = np.pi - np.arccos((_THIGH**2 + _SHIN**2 - reach**2) / (2 * _THIGH * _SHIN))
    inner = np.arccos((_THIGH**2 + reach**2 - _SHIN**2) / (2 * _THIGH * reach))
    return np.arctan2(outward, down) + inner - _REST_THIGH, knee - _REST_KNEE


# Colour

# Björn Ottosson's OKLab: to cube roots of cone responses, and from their cubes to linear sRGB.
_LMS = np.array([[0.3963377774, 0.2158037573], [-0.1055613458, -0.0638541728],
                 [-0.0894841775, -1.2914855480]])  # fmt: skip
_LINEAR = np.array([[4.0767416621, -3.3077115913, 0.2309699292],
                    [-1.2684380046, 2.6097574011, -0.3413193965],
                    [-0.0041960863, -0.7034186147, 1.7076147010]])  # fmt: skip

_INK = np.array([0.12, 0.08, 0.14], np.float32)
_PAPER = np.array([1.0, 0.98, 0.95], np.float32)

# All palettes are (lightness, chroma, hue in degrees). Skin runs from light to deep.
_SKIN = ((0.90, 0.040, 60), (0.85, 0.060, 58), (0.79, 0.072, 60), (0.71, 0.080, 58),
         (0.61, 0.080, 54), (0.51, 0.072, 50), (0.42, 0.055, 46))  # fmt: skip
_HAIR = ((0.22, 0.015, 60), (0.28, 0.035, 50), (0.24, 0.02, 280), (0.36, 0.06, 50),
         (0.46, 0.085, 55), (0.56, 0.13, 47), (0.80, 0.10, 85), (0.86, 0.06, 90),
         (0.75, 0.01, 250), (0.40, 0.09, 32), (0.47, 0.11, 305), (0.55, 0.09, 220))  # fmt: skip
_IRIS = ((0.38, 0.07, 50), (0.50, 0.10, 65), (0.56, 0.11, 145), (0.60, 0.11, 240),
         (0.55, 0.05, 250), (0.32, 0.04, 45))  # fmt: skip
_CLOTH = ((0.70, 0.14, 30), (0.53, 0.14, 28), (0.79, 0.14, 84), (0.45, 0.08, 160),
          (0.56, 0.09, 195), (0.71, 0.09, 235), (0.37, 0.09, 265), (0.53, 0.13, 295),
          (0.43, 0.11, 340), (0.73, 0.11, 5), (0.91, 0.03, 85), (0.35, 0.015, 260))  # fmt: skip
_GROUND = ((0.84, 0.065, 240), (0.80, 0.065, 150), (0.81, 0.07, 305), (0.87, 0.06, 172),
           (0.91, 0.06, 98), (0.45, 0.07, 200), (0.42, 0.08, 275), (0.63, 0.09, 225),
           (0.66, 0.09, 340), (0.60, 0.08, 165), (0.72, 0.10, 285))  # fmt: skip

_HAIR_STYLES = ("short", "long", "bun", "curly", "bald", "cap", "bob", "side")
_PATTERNS = ("plain", "stripes", "dots", "check")
_BACKGROUNDS = ("gradient", "stripes", "bokeh", "tiles", "landscape")


def _oklch(lightness: float, chroma: float, hue: float) -> np.ndarray:
    """A colour of OKLCH as sRGB in [0, 1], (3,) float32."""
    angle = math.radians(hue)
    lms = lightness + _LMS @ np.array([chroma * math.cos(angle), chroma * math.sin(angle)])
    linear = np.clip(_LINEAR @ lms**3, 0.0, 1.0)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return encoded.astype(np.float32)


def _contrast(a: Sequence[float], b: Sequence[float]) -> float:
    """Distance of two OKLCH colours in OKLab."""
    turn = math.cos(math.radians(a[2] - b[2]))
    return math.sqrt((a[0] - b[0]) ** 2 + a[1] ** 2 + b[1] ** 2 - 2.0 * a[1] * b[1] * turn)


def _blend(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    return a + share * (b - a)


def _shade(colour: np.ndarray, amount: float) -> np.ndarray:
    """Lighter (positive) or darker (negative) by a share of the way to paper or ink."""
    return _blend(colour, _PAPER if amount > 0 else _INK, abs(amount))


class _Identity:
    """An identity vector as choices, proportions and colours."""

    def __init__(self, values: np.ndarray) -> None:
        self.raw = {n: float(v) for n, v in zip(IDENTITY_NAMES, values, strict=True)}
        self.hair_style = self.choose("hair_style", _HAIR_STYLES)
        self.pattern = self.choose("cloth_pattern", _PATTERNS)
        self.background = self.choose("background_style", _BACKGROUNDS)
        self.beard = self.raw["beard"] > 0.72 and self.hair_style not in ("long", "bun", "bob")

        tone = self.raw["skin"] * (len(_SKIN) - 1.001)
        low, high = np.array(_SKIN[int(tone)]), np.array(_SKIN[int(tone) + 1])
        light, chroma, hue = (low + tone % 1.0 * (high - low)).tolist()
        hue += self.span("undertone", -10.0, 10.0)
        self.skin = _oklch(light, chroma, hue)
        self.skin_bright = _oklch(min(light + 0.05, 0.95), chroma * 0.9, hue + 4)
        self.skin_shadow = _oklch(light - 0.10, chroma * 1.15, hue - 10)
        self.skin_line = _oklch(light - 0.24, chroma * 1.1, hue - 20)
        self.blush = _oklch(light - 0.04, chroma + 0.055, 28)
        lips = (
            0.70 * light + 0.04,
            self.span("lip_colour", 0.07, 0.13) * (0.5 + 0.5 * light),
            20.0,
        )
        self.lips, self.lips_light = _oklch(*lips), _oklch(lips[0] + 0.09, *lips[1:])

        # Where only brows and beard have the colour, it is a natural one.
        shade = list(self.choose("hair_colour", _HAIR[:6] if self.hair_style == "bald" else _HAIR))
        if _contrast(shade, (light, chroma, hue)) < 0.14:  # keep the hairline readable
            shade[0] = light - 0.18 if light > 0.45 else 0.20
            shade[1] *= 0.5
        self.hair = _oklch(*shade)
        self.hair_dark = _oklch(max(shade[0] - 0.09, 0.12), shade[1] * 0.9, shade[2] - 6)
        self.hair_light = _oklch(shade[0] + 0.10, shade[1] * 1.05, shade[2] + 6)
        self.brow = _blend(self.hair_dark, self.skin_line, 0.35 if shade[0] < 0.6 else 0.6)
        self.beard_hair = self.hair if shade[0] < 0.6 else _blend(self.hair, self.skin_line, 0.45)
        self.iris = _oklch(*self.choose("eye_colour", _IRIS))

        # Of the palettes, only what stands out: the ground from skin and hair, cloth from ground.
        def clear(ground: Sequence[float]) -> float:
            skin = _contrast(ground, (light, chroma, hue))
            return skin if self.hair_style == "bald" else min(skin, _contrast(ground, shade))

        ground = self.choose("background_colour", sorted(_GROUND, key=clear)[4:])
        self.ground = ground
        distinct = sorted(_CLOTH, key=lambda cloth: _contrast(cloth, ground))
        cloth = self.choose("cloth_colour", distinct[4:])
        self.cloth = _oklch(*cloth)
        self.cloth_dark = _oklch(cloth[0] - 0.08, cloth[1], cloth[2] - 6)
        self.cloth_light = _oklch(min(cloth[0] + 0.07, 0.96), cloth[1], cloth[2] + 4)
        partners = sorted(_CLOTH, key=lambda other: -abs(other[0] - cloth[0]))
        self.trim = _oklch(*self.choose("cloth_accent", partners[:4]))
        self.sash = _oklch(*self.choose("accessory", partners[:6]))
        dark = _contrast(ground, (0.36, 0.02, 270)) > 0.2 and cloth[0] > 0.5
        self.trousers = _oklch(0.36, 0.03, 270) if dark else _oklch(0.88, 0.025, 85)

    def choose(self, name: str, options: Sequence[Any]) -> Any:
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

    def band(self, v: Any, top: Any, bottom: Any, slope: Any, within: Any) -> np.ndarray:
        """Coverage between two curves v = top(u) and v = bottom(u) of similar slope.

        Exact for bands thinner than a pixel; ``within`` is a distance that ends the band.
        """
        per_pixel = self.per_pixel / np.sqrt(1.0 + slope * slope)
        above = np.clip(0.5 - (top - v) * per_pixel, 0.0, 1.0)
        below = np.clip(0.5 - (v - bottom) * per_pixel, 0.0, 1.0)
        return np.maximum(above + below - 1.0, 0.0) * self.cover(within)

    def fill(self, alpha: Any, colour: Any) -> None:
        """Lay a colour over the picture with an opacity (T, h, w)."""
        for plane, value in zip(self.rgb, colour, strict=True):
            plane += alpha * (value - plane)

    def paint(
        self, distance: Any, colour: Any, opacity: Any = 1.0, soft: float = 0.0, clip: Any = None
    ) -> np.ndarray:
        """Paint the inside of a shape; returns the opacity it was painted with.

        ``clip`` limits the paint to another coverage, of this window or of the whole canvas.
        """
        alpha = self.cover(distance, soft) * opacity
        if clip is not None:
            alpha = alpha * (clip if clip.shape == alpha.shape else clip[self.window])
        self.fill(alpha, colour)
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


def _slab(u: Any, v: Any, half_u: Any, half_v: Any, corner: float) -> Any:
    """Distance to a rectangle around the origin with rounded corners."""
    across, down = np.abs(u) - half_u + corner, np.abs(v) - half_v + corner
    outside = np.sqrt(np.maximum(across, 0.0) ** 2 + np.maximum(down, 0.0) ** 2)
    return outside + np.minimum(np.maximum(across, down), 0.0) - corner


def _merge(a: Any, b: Any, width: float) -> Any:
    """Union of two shapes with a fillet of the given width."""
    near = np.maximum(width - np.abs(a - b), 0.0)
    return np.minimum(a, b) - near * near * (0.25 / width)


def _meet(a: Any, b: Any, width: float) -> Any:
    """Intersection of two shapes, its corners rounded by the given width."""
    return -_merge(-a, -b, width)


# Backgrounds


def _background(who: _Identity, size: int, kind: str) -> np.ndarray:
    """The scene behind a puppet, (3, size, size) float32."""
    light, chroma, hue = who.ground
    bright, dim = _oklch(light + 0.05, chroma, hue + 12), _oklch(light - 0.07, chroma, hue - 12)
    detail = who.raw["background_detail"]
    rng = np.random.Generator(np.random.PCG64(int(detail * 2**24)))
    plain = np.ones((3, size, size), np.float32) * _oklch(*who.ground)[:, None, None]
    canvas = _Canvas(plain, 1)
    page = canvas.layer(canvas.screen(), -1.0, -1.0, 1.0, 1.0)
    u, v = page.u, page.v
    if who.background == "gradient":
        page.paint(v + 0.35 * u - 0.1, dim, soft=2.6)
        page.paint(_ellipse(u, v + 0.15, 0.75, 0.75), _shade(bright, 0.2), soft=0.9)
    elif who.background == "stripes":
        tilt = 0.5 + detail
        across = u * math.cos(tilt) + v * math.sin(tilt)
        page.paint(_stripe(across, 0.45), bright, 0.8)
    elif who.background == "bokeh":
        page.paint(v - 0.2, dim, soft=2.4)
        for x, y, radius, tint in rng.random((16, 4)).tolist():
            spot = canvas.layer(
                canvas.screen().at(2.2 * x - 1.1, 2.2 * y - 1.1), -0.3, -0.3, 0.3, 0.3
            )
            radius = 0.07 + 0.17 * radius
            colour = _oklch(light + 0.10, 0.08, hue + 90 * (tint - 0.5))
            spot.paint(_ellipse(spot.u, spot.v, radius, radius), colour, 0.45, soft=0.04)
    elif who.background == "tiles":
        along, down = _brick(u, v, 0.4)
        page.paint(np.maximum(np.abs(along), np.abs(down)) - 0.18, bright, 0.75)
        page.paint(v - 0.2, dim, 0.6, soft=2.6)
    else:
        sky = 235.0 if detail < 0.5 else 300.0
        page.paint(np.full_like(u, -1.0), _oklch(0.87, 0.06, sky))
        page.paint(0.1 - v, _oklch(0.94, 0.05, 75), soft=1.5)
        page.paint(_ellipse(u - 1.4 * detail + 0.7, v + 0.6, 0.16, 0.16), _oklch(0.97, 0.06, 95))
        land = 160.0 if detail < 0.5 else 225.0
        for level, phase in enumerate(rng.random((3, 2)) * (2.0 * np.pi)):
            ridge = 0.05 + 0.2 * level - v
            for height, rate, start in ((0.16, 2.3, phase[0]), (0.06, 5.1, phase[1])):
                ridge = ridge - height * np.sin(rate * u + np.float32(start))
            page.paint(ridge, _oklch(0.76 - 0.09 * level, 0.075, land + 15 * level))
    if kind == "taichi":
        floor = _oklch(light - 0.13, 0.5 * chroma, hue + 20)
        ground = page.paint(0.55 - v, floor)
        page.paint(0.6 - v, _shade(floor, 0.3), 0.7, soft=0.8, clip=ground)
    page.paint(1.3 - np.sqrt(u * u + v * v), _INK, 0.22, soft=1.1)
    return canvas.rgb[:, 0]


def _stripe(x: Any, period: float) -> Any:
    """Distance to stripes that cover half of a line, one every ``period``."""
    return np.abs(x % period - 0.5 * period) - 0.25 * period


def _brick(u: Any, v: Any, pitch: float) -> tuple[Any, Any]:
    """Coordinates relative to the nearest centre of a grid whose every other row is shifted."""
    row = np.floor(v / pitch)
    return (u + 0.5 * pitch * (row % 2)) % pitch - 0.5 * pitch, v - (row + 0.5) * pitch


def _paint_pattern(layer: _Layer, who: _Identity, cloth: np.ndarray, pitch: float) -> None:
    """Paint the pattern of the clothes over their coverage."""
    u, v = layer.u, layer.v
    if who.pattern == "stripes":
        layer.paint(_stripe(v, pitch), who.trim, 0.85, clip=cloth)
    elif who.pattern == "dots":
        along, down = _brick(u, v, pitch)
        layer.paint(np.sqrt(along**2 + down**2) - 0.22 * pitch, who.trim, 0.85, clip=cloth)
    elif who.pattern == "check":
        for axis in (u, v):
            layer.paint(_stripe(axis, pitch), who.trim, 0.3, clip=cloth)


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
        z = z * self.cos_yaw - x * self.sin_yaw
        return (
            u,
            y * self.cos_pitch - z * self.sin_pitch,
            z * self.cos_pitch + y * self.sin_pitch,
        )

    def depth(self, x: float, y: float) -> float:
        """Height of the face's surface in front of the middle of the head."""
        a, b, c = self.radii
        return c * math.sqrt(max(1.0 - (x / a) ** 2 - (y / b) ** 2, 0.05))

    def touch(self, x: float, y: float, lift: float = 0.0) -> _Patch:
        """The plane touching the face at (x, y), raised by ``lift``."""
        a, b, c = self.radii
        z = self.depth(x, y)
        u, v, _ = self.point(x, y, z + lift)
        uu, vu, _ = self.point(1.0, 0.0, -c * c * x / (a * a * z))
        uv, vv, _ = self.point(0.0, 1.0, -c * c * y / (b * b * z))
        return self.plane.at(u, v, uu, uv, vu, vv)

    def width(self, x: float, z: float) -> Any:
        """Half-width of an ellipsoid with radii x (sideways) and z (depth) after turning."""
        return np.sqrt((x * self.cos_yaw) ** 2 + (z * self.sin_yaw) ** 2)

    def height(self, y: float, z: float) -> Any:
        """Half-height of an ellipsoid with radii y (upright) and z (depth) after nodding."""
        return np.sqrt((y * self.cos_pitch) ** 2 + (z * self.sin_pitch) ** 2)


class _Head:
    """One talking head being painted: who, in which poses, and where its parts are."""

    def __init__(self, canvas: _Canvas, who: _Identity, pose: dict[str, np.ndarray]) -> None:
        self.canvas, self.who, self.pose = canvas, who, pose
        self.wide, self.long = (
            who.span("face_width", 0.94, 1.07),
            who.span("face_length", 0.95, 1.05),
        )
        self.spacing = who.span("eye_spacing", 0.30, 0.35) * self.wide
        self.volume = who.span("hair_volume", 0.0, 0.09)
        yaw, pitch, roll = pose["yaw"], pose["pitch"], pose["roll"]
        scene = canvas.screen().at(0.0, 0.06, 1.12, 0.0, 0.0, 1.12)  # near enough for faces
        # The head hangs on the neck and rolls about a point below it; the torso follows partly.
        neck_x, neck_y = 0.62 * pose["x"], 0.48 + 0.5 * pose["y"]
        plane = scene.at(
            neck_x + 0.38 * pose["x"] + 0.53 * np.sin(roll) + 0.05 * yaw,
            neck_y + 0.5 * pose["y"] - 0.53 * np.cos(roll) - 0.03 * pitch,
        )
        plane = plane.at(0.0, 0.0, 0.55, 0.0, 0.0, 0.55).turned(roll)
        self.skull = _Skull(plane, yaw, pitch, (0.82 * self.wide, 1.12 * self.long, 0.82))
        self.torso = scene.at(0.6 * neck_x, 0.10 + 0.35 * pose["y"]).turned(0.12 * roll)
        self.ears = [
            (sign, *self.skull.point(sign * 0.80 * self.wide, 0.06, -0.08)) for sign in (-1, 1)
        ]
        self.face = canvas.mask()


def _draw_head(canvas: _Canvas, who: _Identity, pose: dict[str, np.ndarray]) -> None:
    head = _Head(canvas, who, pose)
    _draw_back_hair(head)
    _draw_shoulders(head)
    for sign, u, v, _ in head.ears:
        _draw_ear(head, sign, u, v, 1.0)
    _draw_face(head)
    if who.beard:
        _draw_beard(head)
    for sign, lid in ((-1.0, "left_eye"), (1.0, "right_eye")):
        _draw_eye(head, sign, pose[lid])
        _draw_brow(head, sign)
    _draw_mouth(head)
    _draw_nose(head)
    if who.hair_style == "cap":
        _draw_cap(head)
    elif who.hair_style != "bald":
        _draw_front_hair(head)
    if who.hair_style not in ("long", "bob", "curly"):
        for sign, u, v, depth in head.ears:  # the near ear comes in front as the head turns
            _draw_ear(head, sign, u, v, _smoothstep(depth, 0.02, 0.25))
    if who.raw["glasses"] > 0.68:
        _draw_glasses(head)


def _draw_shoulders(head: _Head) -> None:
    who, torso = head.who, head.torso
    build = who.span("build", 0.92, 1.08)
    layer = head.canvas.layer(torso, -1.3, 0.0, 1.3, 1.3)
    u, v = layer.u, layer.v
    side = np.abs(u)
    slope = _limb(side, v, 0.0, 0.60, 0.15, 0.52 * build, 0.76, 0.20)
    body = np.maximum(side - 0.66 * build - 0.3 * (v - 0.75), 0.72 - v)
    shape = _merge(slope, body, 0.12)
    chin_x, chin_y = head.skull.plane.x - torso.x, head.skull.plane.y - torso.y
    neck = _limb(u, v, chin_x, chin_y + 0.2, 0.175 * build, 0.0, 0.56, 0.19 * build)
    skin = layer.paint(np.minimum(neck, np.maximum(shape, v - 0.85)), who.skin)
    # The chin throws a soft shadow on the neck.
    under = _ellipse(u - 1.25 * chin_x, v - chin_y - 0.32, 0.40, 0.37)
    layer.paint(under, who.skin_shadow, 1.0, soft=0.3, clip=skin)

    turn = 0.10 * head.skull.sin_yaw
    collar = who.choose("collar", ("crew", "v", "high"))
    if collar == "crew":
        opening = _ellipse(u - turn, v - 0.50, 0.27 * build, 0.175)
    elif collar == "v":
        opening = (v - 0.86 + 1.2 * np.abs(u - turn)) * 0.64
    else:
        opening = np.full_like(u, 1.0)
        shape = _merge(shape, _limb(u, v, 0.5 * chin_x, 0.41, 0.20, 0.0, 0.58, 0.22), 0.1)
    cloth = layer.paint(np.maximum(shape - 0.02, -opening), who.cloth)
    _paint_pattern(layer, who, cloth, 0.2)
    layer.paint(0.74 - v - 0.35 * u, _INK, 0.35, soft=0.9, clip=cloth)
    if collar == "high":
        band = layer.cover(v - 0.46 + 0.15 * (u - turn) ** 2)
        layer.paint(shape, who.cloth_light, clip=cloth * band)
    else:
        edge = np.maximum(opening - 0.05, -opening)
        layer.paint(edge, who.trim, clip=layer.cover(shape - 0.02))


def _draw_ear(head: _Head, sign: float, u: Any, v: Any, opacity: Any) -> None:
    who = head.who
    layer = head.canvas.layer(head.skull.plane.at(u, v), -0.22, -0.26, 0.22, 0.36)
    lean = layer.u + 0.15 * sign * layer.v
    layer.paint(_ellipse(lean, layer.v, 0.14, 0.20), who.skin, opacity)
    layer.paint(_ellipse(lean, layer.v, 0.08, 0.13), who.skin_shadow, opacity, soft=0.08)
    if who.raw["accessory"] < 0.35:
        layer.paint(_ellipse(layer.u, layer.v - 0.25, 0.055, 0.055), who.trim, opacity)


def _draw_face(head: _Head) -> None:
    who, skull, canvas = head.who, head.skull, head.canvas
    layer = canvas.layer(skull.plane, -1.1, -1.2, 1.1, 1.35)
    u, v, _ = skull.point(0.0, -0.16, -0.06)
    wide, high = skull.width(0.79 * head.wide, 0.84), skull.height(0.84, 0.84)
    crown = _ellipse(layer.u - u, layer.v - v, wide, high)
    u, v, _ = skull.point(0.0, 0.36 * head.long + 0.08 * head.pose["mouth_open"], 0.18)
    wide = skull.width(who.span("jaw", 0.54, 0.67) * head.wide, 0.6)
    jaw = _ellipse(layer.u - u, layer.v - v, wide, 0.62 * head.long)
    cover = layer.paint(_merge(crown, jaw, 0.3), who.skin)
    head.face[layer.window] = cover
    # Light comes from the upper left.
    core = -_ellipse(layer.u + 0.24, layer.v + 0.14, 0.92, 1.02)
    layer.paint(core, who.skin_shadow, 0.7, soft=0.6, clip=cover)
    glow = canvas.layer(skull.touch(-0.14, -0.45), -0.7, -0.6, 0.7, 0.6)
    shape = _ellipse(glow.u, glow.v, 0.40, 0.26)
    glow.paint(shape, who.skin_bright, 0.8, soft=0.4, clip=head.face)
    for sign in (-1.0, 1.0):
        cheek = canvas.layer(skull.touch(sign * 0.46 * head.wide, 0.29), -0.3, -0.3, 0.3, 0.3)
        shape = _ellipse(cheek.u, cheek.v, 0.15, 0.12)
        strength = 0.28 + 0.18 * head.pose["smile"]
        cheek.paint(shape, who.blush, strength, soft=0.24, clip=head.face)


def _draw_eye(head: _Head, sign: float, opened: Any) -> None:
    who, pose = head.who, head.pose
    size = who.span("eye_size", 0.95, 1.12)
    half = 0.205 * size
    layer = head.canvas.layer(head.skull.touch(sign * head.spacing, -0.08), -0.36, -0.36, 0.36, 0.3)
    u, v = layer.u, layer.v
    s = u / half
    arch = 1.0 - s * s
    upper = (0.05 - 0.22 * size * opened) * arch
    lower = (0.055 + 0.055 * opened) * arch
    slope = s * ((0.44 * size * opened - 0.1) / half)
    socket = _ellipse(u, v + 0.06, 0.26, 0.19)
    layer.paint(socket, who.skin_shadow, 0.6, soft=0.2, clip=head.face)
    ends = np.abs(u) - half
    white = layer.band(v, upper, lower, slope, ends) * head.face[layer.window]
    layer.fill(white, (0.97, 0.96, 0.95))
    gaze_u, gaze_v = u - 0.085 * pose["gaze_x"], v + 0.03 - 0.05 * pose["gaze_y"]
    away = np.sqrt(gaze_u * gaze_u + gaze_v * gaze_v)
    layer.paint(away - 0.128 * size, _shade(who.iris, -0.45), clip=white)
    layer.paint(away - 0.108 * size, who.iris, clip=white)
    layer.paint(away - 0.066 * size, (0.05, 0.03, 0.05), clip=white)
    layer.paint(v - upper - 0.035, _INK, 0.25, soft=0.07, clip=white)  # shadow of the lid
    glint = np.sqrt((gaze_u + 0.045) ** 2 + (gaze_v + 0.05) ** 2)
    layer.paint(glint - 0.036, (1.0, 1.0, 1.0), clip=white)
    lash = np.abs(v - upper) / np.sqrt(1.0 + slope * slope) - 0.018 - 0.014 * arch
    layer.paint(np.maximum(lash, ends - 0.01), _blend(who.skin_line, _INK, 0.8), clip=head.face)


def _draw_brow(head: _Head, sign: float) -> None:
    who, brows = head.who, head.pose["brows"]
    patch = head.skull.touch(sign * (head.spacing + 0.01), -0.36)
    layer = head.canvas.layer(patch, -0.4, -0.36, 0.4, 0.3)
    u, v = sign * layer.u - 0.02, layer.v + 0.09 * brows
    bend = 0.9 * u * u - who.span("brow_tilt", -0.20, 0.05) * u + 0.10 * brows * u
    half = who.span("brow_weight", 0.030, 0.055) * (1.0 - 0.9 * u)
    shape = _meet(np.abs(v - bend) - half, np.abs(u) - 0.25, 0.05)
    layer.paint(shape, who.brow, clip=head.face)


def _draw_nose(head: _Head) -> None:
    who, skull = head.who, head.skull
    size = who.span("nose_size", 0.9, 1.2)
    top_u, top_v, _ = skull.point(0.0, -0.08, skull.depth(0.0, -0.08) + 0.01)
    tip_u, tip_v, _ = skull.point(0.0, 0.22, skull.depth(0.0, 0.22) + 0.17 * size)
    layer = head.canvas.layer(skull.plane.at(tip_u, tip_v), -0.4, -0.6, 0.4, 0.3)
    u, v = layer.u, layer.v
    ridge = _limb(u - 0.05, v, top_u - tip_u, top_v - tip_v, 0.02, 0.0, 0.0, 0.07 * size)
    layer.paint(ridge, who.skin_shadow, 0.75, soft=0.12, clip=head.face)
    wing = _ellipse(np.abs(u) - 0.085 * size, v - 0.045, 0.06 * size, 0.05)
    ball = _merge(_ellipse(u, v, 0.10 * size, 0.09 * size), wing, 0.06)
    layer.paint(ball - 0.015, who.skin_shadow, 0.9, soft=0.05)
    layer.paint(_ellipse(u + 0.01, v + 0.012, 0.10 * size, 0.08 * size), who.skin, soft=0.06)
    layer.paint(_ellipse(u + 0.03, v + 0.03, 0.05, 0.04), who.skin_bright, 0.9, soft=0.06)
    nostril = _ellipse(np.abs(u) - 0.06 * size, v - 0.078 * size, 0.034, 0.018)
    layer.paint(nostril, who.skin_line, 0.9)


def _draw_mouth(head: _Head) -> None:
    who, opened, smile = head.who, head.pose["mouth_open"], head.pose["smile"]
    half = who.span("mouth_width", 0.27, 0.33) * (1.0 + 0.14 * smile - 0.2 * opened)
    layer = head.canvas.layer(head.skull.touch(0.0, 0.53, 0.03), -0.48, -0.3, 0.48, 0.56)
    u, v, face = layer.u, layer.v, head.face
    s = u / half
    arch, ends = 1.0 - s * s, np.abs(u) - half
    middle = (0.12 * smile + 0.02) * arch - 0.06 * smile
    upper = middle - 0.05 * opened * arch
    lower = middle + 0.28 * opened * arch
    slope = s * (0.2 * smile + 0.3 * opened) / half
    shade = _ellipse(u, v - 0.2 - 0.28 * opened, 0.15, 0.05)
    below = _shade(who.beard_hair, -0.2) if who.beard else who.skin_shadow
    layer.paint(shade, below, 0.8, soft=0.1, clip=face)
    bow = 0.02 * np.exp(-((u / 0.06) ** 2))
    red = layer.band(v, upper - (0.07 - bow) * arch, lower + 0.09 * arch, slope, ends)
    red *= face[layer.window]
    layer.fill(red, who.lips)
    layer.paint(lower + 0.05 * arch - v, who.lips_light, 0.6, soft=0.06, clip=red)
    hole = layer.band(v, upper, lower, slope, ends) * face[layer.window]
    layer.fill(hole, (0.22, 0.06, 0.09))
    layer.paint(_ellipse(u, v - lower - 0.01, 0.62 * half, 0.12), (0.80, 0.38, 0.40), clip=hole)
    layer.paint(v - upper - 0.09 * arch, (0.97, 0.95, 0.92), clip=hole)
    thin = 0.016 * np.maximum(arch, 0.0)
    seam = layer.band(v, middle - thin, middle + thin, slope, ends) * face[layer.window]
    layer.fill(seam * (1.0 - _smoothstep(opened, 0.02, 0.15)), _shade(who.lips, -0.55))


def _draw_beard(head: _Head) -> None:
    who, skull = head.who, head.skull
    layer = head.canvas.layer(skull.plane, -1.0, -0.2, 1.0, 1.35)
    u, v, _ = skull.point(0.0, 0.12, 0.6)
    cheeks = _ellipse(layer.u - u, layer.v - v, skull.width(0.56, 0.4), 0.42)
    # Sideburns fade into the hair.
    sideburn = layer.cover(_hem(head, layer.u, -0.04, 0.0) - layer.v, soft=0.2)
    beard = layer.paint(-cheeks, who.beard_hair, sideburn, clip=head.face)
    layer.paint(v + 0.62 - layer.v, _shade(who.beard_hair, -0.3), 0.7, soft=0.5, clip=beard)
    lip = head.canvas.layer(skull.touch(0.0, 0.40, 0.08), -0.42, -0.2, 0.42, 0.3)
    bend = 0.9 * lip.u**2 - 0.02
    half = 0.06 * (1.0 - (lip.u / 0.34) ** 2)
    ends = np.abs(lip.u) - 0.34
    tache = lip.band(lip.v, bend - half, bend + half, 1.4 * lip.u, ends)
    lip.fill(tache * head.face[lip.window], who.beard_hair)


def _draw_back_hair(head: _Head) -> None:
    who, skull, volume, wide = head.who, head.skull, head.volume, head.wide
    centre_u, centre_v, _ = skull.point(0.0, -0.2, -0.25)
    layer = head.canvas.layer(skull.plane.at(centre_u, centre_v), -1.3, -1.3, 1.3, 1.75)
    u, v = layer.u, layer.v
    if who.hair_style == "long":
        fall = _slab(u, v - 0.62, 0.80 * wide + volume, 0.72, 0.3)
        layer.paint(_merge(_ellipse(u, v, 0.90 * wide + volume, 0.98), fall, 0.2), who.hair_dark)
    elif who.hair_style == "bob":
        shape = _ellipse(u, v - 0.12, 0.98 * wide + volume, 1.05)
        layer.paint(np.maximum(shape, v - 0.92 - 0.06 * u * u), who.hair_dark)
    elif who.hair_style == "curly":
        bumps = 0.05 * np.cos(13.0 * np.arctan2(v, u))
        layer.paint(_ellipse(u, v - 0.02, 1.02 * wide + volume, 1.08) - bumps, who.hair_dark)
    elif who.hair_style == "bun":
        layer.paint(_ellipse(u, v, 0.84 * wide, 0.92), who.hair_dark)
        bun_u, bun_v, _ = skull.point(0.0, -1.10, -0.3)
        bun = head.canvas.layer(skull.plane.at(bun_u, bun_v), -0.45, -0.45, 0.45, 0.45)
        cover = bun.paint(_ellipse(bun.u, bun.v, 0.32 + volume, 0.29 + volume), who.hair)
        bun.paint(bun.v * -1.0 + 0.16, who.hair_dark, 0.8, soft=0.2, clip=cover)
        glow = _ellipse(bun.u + 0.1, bun.v + 0.1, 0.14, 0.10)
        bun.paint(glow, who.hair_light, 0.8, soft=0.16, clip=cover)


def _hem(head: _Head, u: Any, front: float, back: float) -> Any:
    """Lower edge of short hair: ``front`` above the ears, dropping by ``back`` behind them."""
    (_, left, left_v, _), (_, right, right_v, _) = head.ears
    beyond = np.maximum(np.maximum(left - u, u - right), 0.0)
    level = left_v + (u - left) / (right - left) * (right_v - left_v)
    return level + front + np.minimum(2.5 * beyond, back)


def _draw_front_hair(head: _Head) -> None:
    who, skull, wide = head.who, head.skull, head.wide
    layer = head.canvas.layer(skull.plane, -1.3, -1.45, 1.3, 1.55)
    centre_u, centre_v, _ = skull.point(0.0, -0.2, -0.1)
    u, v = layer.u - centre_u, layer.v - centre_v
    dome = _ellipse(u, v, skull.width(0.83 * wide + 0.5 * head.volume, 0.9), 0.91 + head.volume)
    # The face looks out of an opening that turns with it: turning shows more hair on one side.
    front_u, front_v, _ = skull.point(0.0, 0.28, 0.62)
    fu, fv = layer.u - front_u, layer.v - front_v
    opening = _ellipse(fu, fv, skull.width(0.66 * wide, 0.45), 0.84)
    parting = 1.0 if who.raw["fringe"] > 0.5 else -1.0
    if who.hair_style == "short":
        shape = _meet(dome, layer.v - _hem(head, layer.u, -0.04, 0.5), 0.1)
        opening = _meet(opening, -0.68 + 0.035 * np.cos(9.0 * fu) - fv, 0.08)
    elif who.hair_style == "side":
        shape = _meet(dome, layer.v - _hem(head, layer.u, 0.0, 0.55), 0.1)
        opening = _meet(opening, -0.74 + 0.3 * parting * fu - 0.2 * fu * fu - fv, 0.08)
    elif who.hair_style == "bun":
        shape = _meet(dome, layer.v - _hem(head, layer.u, -0.06, 0.4), 0.1)
        opening = _merge(opening, _ellipse(fu - 0.2 * parting, fv + 0.06, 0.5 * wide, 0.84), 0.1)
    elif who.hair_style == "curly":
        bumps = 0.05 * np.cos(13.0 * np.arctan2(v, u))
        shape = _meet(dome - 0.03 - bumps, v - 0.66 - 0.05 * np.cos(14.0 * u), 0.12)
        opening = opening - 0.06 * np.cos(11.0 * np.arctan2(fv, fu)) - 0.02
    elif who.hair_style == "bob":
        shape = _meet(dome - 0.03, v - 1.0, 0.1)
        opening = _meet(opening, -0.64 + 0.03 * np.cos(9.0 * fu) - fv, 0.08)
    else:
        fall = _slab(u, v - 0.62, 0.86 * wide + 0.5 * head.volume, 0.66, 0.2)
        shape = _merge(dome - 0.02, fall, 0.2)
        gap = 0.42 * wide + 0.4 * np.abs(front_u)  # the far curtain goes behind the neck
        chest = np.maximum(np.abs(layer.u - 0.8 * front_u) - gap, -fv)
        lock = _ellipse(fu - 0.25 * parting, fv + 0.02, 0.55 * wide, 0.86)
        opening = _merge(_merge(opening, lock, 0.1), chest, 0.3)
    # Long hair is rounded more, so that no thin strand is left of a curtain going out of sight.
    shape = _meet(shape, -opening, 0.35 if who.hair_style == "long" else 0.08)
    layer.paint(shape - 0.04, who.skin_line, 0.45, soft=0.12, clip=head.face)
    hair = layer.paint(shape, who.hair)
    if who.hair_style == "curly":
        curls = np.cos(15.0 * u + 3.0 * np.sin(7.0 * v)) * np.cos(15.0 * v + 3.0 * np.sin(6.0 * u))
        layer.paint(0.25 - curls, who.hair_light, 0.5, soft=0.9, clip=hair)
    else:
        # Strands run down from the crown.
        crown = np.minimum(v + 0.1, 0.0)
        strand = (u - 0.6 * front_u) / np.sqrt(np.maximum(1.0 - crown * crown, 0.05))
        wave = np.cos(23.0 * strand) + 0.6 * np.cos(37.0 * strand + 1.0)
        layer.paint(0.6 - wave, who.hair_dark, 0.5, soft=1.6, clip=hair)
        glow = _ellipse(u + 0.28, v + 0.56, 0.38, 0.17)
        layer.paint(glow, who.hair_light, 0.8, soft=0.3, clip=hair)
    layer.paint(-_ellipse(u + 0.2, v + 0.2, 0.98, 1.05), who.hair_dark, 0.8, soft=0.5, clip=hair)


def _draw_cap(head: _Head) -> None:
    who, skull, wide = head.who, head.skull, head.wide
    layer = head.canvas.layer(skull.plane, -1.3, -1.3, 1.3, 0.9)
    centre_u, centre_v, _ = skull.point(0.0, -0.2, -0.1)
    u, v = layer.u - centre_u, layer.v - centre_v
    dome = _ellipse(u, v, skull.width(0.83 * wide, 0.9), 0.90)
    front_u, front_v, _ = skull.point(0.0, 0.28, 0.62)
    opening = _ellipse(layer.u - front_u, layer.v - front_v, skull.width(0.68 * wide, 0.5), 0.9)
    sides = np.maximum(np.maximum(dome, -opening), layer.v - _hem(head, layer.u, -0.04, 0.5))
    layer.paint(sides, who.hair)
    # The rim runs around the head at one height, so it bends up or down as the head nods.
    rim = -0.42 * skull.cos_pitch - 0.80 * skull.sin_pitch * np.sqrt(
        np.maximum(1.0 - ((layer.u - 0.75 * front_u) / (1.1 * wide)) ** 2, 0.0)
    )
    crown = np.maximum(dome - 0.06, layer.v - rim)
    layer.paint(crown - 0.08, who.skin_line, 0.5, soft=0.2, clip=head.face)
    cap = layer.paint(crown, who.cloth)
    layer.paint(-_ellipse(u + 0.2, v + 0.2, 0.98, 1.0), who.cloth_dark, 0.9, soft=0.5, clip=cap)
    layer.paint(_ellipse(u + 0.3, v + 0.6, 0.3, 0.16), who.cloth_light, 0.8, soft=0.3, clip=cap)
    layer.paint(np.abs(layer.v - rim + 0.06) - 0.05, who.trim, clip=cap)
    root_u, root_v, _ = skull.point(0.0, -0.44, 0.74)
    tip_u, tip_v, _ = skull.point(0.0, -0.36, 1.12)
    pu, pv = layer.u - 0.5 * (root_u + tip_u), layer.v - 0.5 * (root_v + tip_v)
    tall = 0.08 + 0.45 * np.abs(tip_v - root_v)
    peak = _ellipse(pu, pv - 0.25 * pu * pu, skull.width(0.62 * wide, 0.40), tall)
    visor = layer.paint(peak, who.cloth_dark)
    layer.paint(pv + 0.3 * tall - 0.25 * pu * pu, who.cloth, soft=0.1, clip=visor)


def _draw_glasses(head: _Head) -> None:
    who, skull = head.who, head.skull
    frame = _INK if who.skin.mean() > 0.5 else _oklch(0.82, 0.11, 85)
    for sign, ear_u, ear_v, depth in head.ears:
        hinge_x = sign * (head.spacing + 0.26)
        u, v, _ = skull.point(hinge_x, -0.08, skull.depth(hinge_x, -0.08) + 0.05)
        arm = head.canvas.layer(skull.plane, -1.0, -0.8, 1.0, 0.8)
        shape = _limb(arm.u, arm.v, u, v, 0.022, ear_u, ear_v - 0.1, 0.018)
        arm.paint(shape, frame, _smoothstep(depth, -0.05, 0.1))
    for sign in (-1.0, 1.0):
        layer = head.canvas.layer(
            skull.touch(sign * head.spacing, -0.06, 0.05), -0.36, -0.36, 0.36, 0.36
        )
        u, v = layer.u, layer.v
        if who.raw["glasses"] > 0.84:
            across, down = np.maximum(np.abs(u) - 0.16, 0.0), np.maximum(np.abs(v) - 0.10, 0.0)
            rim = np.sqrt(across**2 + down**2) - 0.115
        else:
            rim = _ellipse(u, v, 0.275, 0.255)
        lens = layer.paint(rim, (0.9, 0.96, 1.0), 0.10)
        layer.paint(np.abs(u + 0.6 * v + 0.08) - 0.05, (1.0, 1.0, 1.0), 1.5, soft=0.05, clip=lens)
        layer.paint(np.abs(rim) - 0.026, frame)
    layer = head.canvas.layer(skull.touch(0.0, -0.1, 0.05), -0.14, -0.12, 0.14, 0.12)
    bridge = np.abs(layer.v + 0.02 - 1.5 * layer.u**2) - 0.024
    layer.paint(np.maximum(bridge, np.abs(layer.u) - head.spacing + 0.26), frame)


# Tai-chi figure


def _draw_taichi(canvas: _Canvas, who: _Identity, pose: dict[str, np.ndarray]) -> None:
    hip_x, hip_y, lean = pose["x"], _HIP_HEIGHT + pose["y"], pose["lean"]
    trunk = canvas.screen().at(hip_x, hip_y).turned(lean)
    chest = trunk.at(0.0, -_TORSO)
    shadow = canvas.layer(canvas.screen().at(hip_x, _FLOOR - 0.01), -0.55, -0.1, 0.55, 0.1)
    away = np.sqrt((shadow.u / 0.5) ** 2 + (shadow.v / 0.085) ** 2)
    shadow.paint(away - 0.75, _INK, 0.4, soft=0.6)
    if who.hair_style == "long":
        _draw_mane(canvas, who, chest.turned(0.3 * lean))
    _draw_arm(canvas, who, chest, pose, -1.0, None)
    for sign in (-1.0, 1.0):
        _draw_leg(canvas, who, pose, sign)
    body = _draw_tunic(canvas, who, trunk, pose["twist"])
    _draw_small_head(canvas, who, chest.turned(0.3 * lean), pose)
    _draw_arm(canvas, who, chest, pose, 1.0, body)


def _joints(canvas: _Canvas, margin: float, *points: tuple[Any, Any]) -> _Layer:
    """A layer of the picture's plane around some moving points."""
    low_x, low_y = (np.minimum.reduce([p[axis] for p in points]) - margin for axis in (0, 1))
    high_x, high_y = (np.maximum.reduce([p[axis] for p in points]) + margin for axis in (0, 1))
    return canvas.layer(canvas.screen(), low_x, low_y, high_x, high_y)


def _draw_arm(
    canvas: _Canvas,
    who: _Identity,
    chest: _Patch,
    pose: dict[str, np.ndarray],
    sign: float,
    body: np.ndarray | None,
) -> None:
    """The near (sign 1) or far arm; its shadow falls on the coverage ``body``."""
    side = "near" if sign > 0 else "far"
    shoulder = chest.at(sign * _SHOULDER_WIDTH * np.cos(pose["twist"]), 0.09)
    top_x, top_y = shoulder.x, shoulder.y
    raised = _REST_ARM + pose[f"{side}_shoulder"]
    folded = raised - _REST_ELBOW - pose[f"{side}_elbow"]
    ahead_x, ahead_y = sign * np.sin(folded), np.cos(folded)
    elbow_x, elbow_y = (
        top_x + sign * _UPPER_ARM * np.sin(raised),
        top_y + _UPPER_ARM * np.cos(raised),
    )
    cuff_x, cuff_y = elbow_x + _FOREARM * ahead_x, elbow_y + _FOREARM * ahead_y
    layer = _joints(canvas, 0.2, (top_x, top_y), (elbow_x, elbow_y), (cuff_x, cuff_y))
    u, v = layer.u, layer.v
    hand = _limb(
        u, v, cuff_x, cuff_y, 0.045, cuff_x + 0.07 * ahead_x, cuff_y + 0.07 * ahead_y, 0.055
    )
    upper = _limb(u, v, top_x, top_y, 0.088, elbow_x, elbow_y, 0.078)
    lower = _limb(u, v, elbow_x, elbow_y, 0.078, cuff_x, cuff_y, 0.10)
    beyond = (u - cuff_x) * ahead_x + (v - cuff_y) * ahead_y
    sleeve = _merge(upper, np.maximum(lower, beyond), 0.05)
    if body is not None:
        layer.paint(np.minimum(sleeve, hand) - 0.012, _INK, 0.45, soft=0.08, clip=body)
    layer.paint(hand, who.skin if sign > 0 else who.skin_shadow)
    cloth = layer.paint(sleeve, who.cloth if sign > 0 else who.cloth_dark)
    layer.paint(sleeve * -1.0 - 0.045, who.cloth_dark, 0.7, soft=0.07, clip=cloth)
    layer.paint(-0.045 - beyond, who.trim, clip=cloth * layer.cover(lower))


def _draw_leg(canvas: _Canvas, who: _Identity, pose: dict[str, np.ndarray], sign: float) -> None:
    """The near (sign 1) or far leg with its shoe."""
    side = "near" if sign > 0 else "far"
    hip_x = pose["x"] + sign * _HIP_WIDTH * np.cos(pose["twist"])
    hip_y = _HIP_HEIGHT + pose["y"]
    thigh = _REST_THIGH + pose[f"{side}_hip"]
    shin = thigh - _REST_KNEE - pose[f"{side}_knee"]
    knee_x, knee_y = hip_x + sign * _THIGH * np.sin(thigh), hip_y + _THIGH * np.cos(thigh)
    foot_x, foot_y = knee_x + sign * _SHIN * np.sin(shin), knee_y + _SHIN * np.cos(shin)
    layer = _joints(canvas, 0.2, (hip_x, hip_y), (knee_x, knee_y), (foot_x, foot_y))
    u, v = layer.u, layer.v
    heel_x, toe_x = foot_x - sign * 0.03, foot_x + sign * 0.12
    shoe = np.maximum(
        _limb(u, v, heel_x, foot_y, 0.06, toe_x, foot_y + 0.02, 0.045), v - foot_y - 0.05
    )
    layer.paint(shoe, _INK)
    upper = _limb(u, v, hip_x, hip_y, 0.135, knee_x, knee_y, 0.105)
    lower = _limb(u, v, knee_x, knee_y, 0.105, foot_x, foot_y - 0.06, 0.085)
    trousers = _merge(upper, lower, 0.06)
    shade = 0.0 if sign > 0 else -0.2
    cover = layer.paint(trousers, _shade(who.trousers, shade))
    layer.paint(-trousers - 0.05, _shade(who.trousers, shade - 0.25), 0.8, soft=0.09, clip=cover)


def _draw_tunic(canvas: _Canvas, who: _Identity, trunk: _Patch, twist: Any) -> np.ndarray:
    """Jacket and sash; returns their coverage (T, H, W)."""
    build = who.span("build", 0.94, 1.08)
    layer = canvas.layer(trunk, -0.45, -0.7, 0.45, 0.36)
    u, v = layer.u, layer.v
    turn = np.cos(twist)
    side = np.abs(u)
    yoke = _limb(side, v, 0.05, 0.065 - _TORSO, 0.085, _SHOULDER_WIDTH * turn, 0.09 - _TORSO, 0.088)
    flare = 0.19 + 0.07 * np.abs(v + 0.06) + 0.30 * np.maximum(v + 0.02, 0.0)
    sides = side - flare * build * (0.72 + 0.28 * turn)
    hem = v - 0.23 + 0.35 * u * u
    shape = _merge(yoke, np.maximum(sides, np.maximum(0.07 - _TORSO - v, hem)), 0.07)
    cover = layer.paint(shape, who.cloth)
    _paint_pattern(layer, who, cover, 0.14)
    layer.paint(-u - 0.2 * v + 0.03, _INK, 0.3, soft=0.35, clip=cover)
    front = u - 0.15 * np.sin(twist) * (0.5 - v)
    layer.paint(np.abs(front) - 0.016, who.trim, clip=cover)
    layer.paint(np.abs(hem + 0.03) - 0.018, who.trim, clip=cover)
    neck = np.abs(front) * 1.5 + v + _TORSO - 0.10
    layer.paint(neck * 0.55 - 0.02, who.trim, clip=cover)
    layer.paint(neck * 0.55, who.skin_shadow, clip=cover)
    sash = np.maximum(np.abs(v + 0.03) - 0.05, sides - 0.012)
    belt = layer.paint(sash, who.sash)
    layer.paint(-u + 0.03, _INK, 0.25, soft=0.35, clip=belt)
    knot = front + 0.07
    tail = _limb(knot, v, 0.0, 0.0, 0.035, -0.03 - 0.1 * np.sin(twist), 0.19, 0.045)
    layer.paint(np.minimum(tail, np.sqrt(knot * knot + (v + 0.03) ** 2) - 0.05), who.sash)
    body = canvas.mask()
    body[layer.window] = cover
    return body


def _draw_mane(canvas: _Canvas, who: _Identity, neck: _Patch) -> None:
    """Long hair hanging down the back."""
    layer = canvas.layer(neck, -0.3, -0.45, 0.3, 0.3)
    u, v = layer.u, layer.v
    layer.paint(_limb(u, v, 0.0, -0.2, 0.16, 0.0, 0.08, 0.15), who.hair_dark)


def _draw_small_head(
    canvas: _Canvas, who: _Identity, neck: _Patch, pose: dict[str, np.ndarray]
) -> None:
    turn = 0.8 * pose["head_turn"] + 0.25 * pose["twist"]
    layer = canvas.layer(neck, -0.34, -0.56, 0.34, 0.12)
    u, v = layer.u, layer.v
    layer.paint(_limb(u, v, 0.0, 0.03, 0.07, 0.0, -0.1, 0.06), who.skin_shadow)
    v = v + 0.21
    sin, cos = np.sin(turn), np.cos(turn)
    back, front = u + 0.03 * sin, u - 0.10 * sin
    style = who.hair_style
    if style == "bob":
        layer.paint(np.maximum(_ellipse(back, v - 0.01, 0.185, 0.19), v - 0.12), who.hair_dark)
    elif style == "curly":
        bumps = 0.012 * np.cos(11.0 * np.arctan2(v + 0.02, back))
        layer.paint(_ellipse(back, v + 0.02, 0.19, 0.19) - bumps, who.hair_dark)
    elif style == "bun":
        layer.paint(_ellipse(u + 0.05 * sin, v + 0.19, 0.07, 0.062), who.hair)
    face = layer.paint(_ellipse(u, v, 0.152, 0.17), who.skin)
    layer.paint(-_ellipse(u + 0.04, v + 0.03, 0.165, 0.18), who.skin_shadow, soft=0.12, clip=face)
    if who.beard:
        cheeks = np.maximum(-_ellipse(front, v - 0.03, 0.10, 0.085), 0.03 - v)
        layer.paint(cheeks, who.beard_hair, clip=face)
    for sign in (-1.0, 1.0):
        # Features slide over a sphere: the far eye moves to the edge and narrows.
        eye_u = u - 0.15 * np.sin(turn + 0.42 * sign)
        narrow = np.cos(turn + 0.42 * sign)
        layer.paint(_ellipse(eye_u, v - 0.01, 0.021 * narrow + 0.004, 0.03), _INK, clip=face)
        layer.paint(
            _ellipse(eye_u + 0.007, v + 0.002, 0.007, 0.009), (1.0, 1.0, 1.0), 0.9, clip=face
        )
        cheek = _ellipse(u - 0.15 * np.sin(turn + 0.62 * sign), v - 0.065, 0.03, 0.022)
        layer.paint(cheek, who.blush, 0.7, soft=0.04, clip=face)
    s = front / (0.055 * cos)
    mouth = np.maximum(np.abs(v - 0.095 + 0.02 * s * s) - 0.011, np.abs(front) - 0.055 * cos)
    layer.paint(mouth, _shade(who.lips, -0.3), clip=face)
    if style == "bald":
        return
    dome = _ellipse(back, v + 0.015, 0.165, 0.18)
    opening = _ellipse(front, v - 0.07, 0.118, 0.155)
    bottom = v - (0.11 if style in ("bob", "long") else 0.035)
    shape = _meet(_meet(dome, bottom, 0.03), -opening, 0.03)
    top = layer.paint(shape, who.hair)
    if style == "cap":
        layer.paint(np.maximum(dome - 0.008, v + 0.055), who.sash)
        layer.paint(_ellipse(u - 0.13 * sin, v + 0.055, 0.115, 0.028), _shade(who.sash, -0.25))
    else:
        glow = _ellipse(u + 0.06, v + 0.12, 0.05, 0.025)
        layer.paint(glow, who.hair_light, 0.9, soft=0.06, clip=top)
