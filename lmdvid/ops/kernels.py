"""The Triton kernels, and what launches them; the only module that imports triton.

Every kernel works on tiles of pixels x channels of one sample and computes in float32 (float64
where that is stored), whatever the tensors hold: loads convert, stores round once. Tensors may be
laid out plane by plane or channels last; a kernel gets the distances between samples, channels and
pixels. Which arrangement of a tile is read without gaps follows from the distance that is 1.

Shapes: B samples, C channels, H x W pixels of what is read, OH x OW of what is written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


CACHED = 20 * 2**20  # bytes, less than half the L2 cache of an A100 or H100


@triton.jit
def _pixels(height, width, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Rows and columns of this program's pixels, (TILE_H * TILE_W,), and whether they exist."""
    tiles = tl.cdiv(width, TILE_W)
    tile = tl.program_id(0)
    place = tl.arange(0, TILE_H * TILE_W)
    y = (tile // tiles) * TILE_H + place // TILE_W
    x = (tile % tiles) * TILE_W + place % TILE_W
    return y, x, (y < height) & (x < width)


@triton.jit
def _sigmoid(x):
    small = tl.exp(-tl.abs(x))  # which never overflows
    return tl.where(x > 0, 1 / (1 + small), small / (1 + small))


@triton.jit
def _clamp(position, size):
    """Positions so far outside that nothing is seen stay small enough for an int; NaN stays NaN."""
    inside = tl.minimum(tl.maximum(position, -2.0), size + 1.0)
    return tl.where(position == position, inside, position)


@triton.jit
def _whole(position):
    """To an int; NaN, which has none, lives on in the shares of the pixels."""
    return tl.where(position == position, position, 0).to(tl.int32)


@triton.jit
def _places(
    where, where_c, pixel, y, x, exists, H, W, OH, OW,
    LOGITS: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Where pixels are sampled, in pixels of the source, and what the mask says there.

    Also d position / d (what is stored), and the mask's complement.
    """
    first = tl.load(where + pixel, mask=exists, other=0).to(ACC)
    second = tl.load(where + where_c + pixel, mask=exists, other=0).to(ACC)
    if ALIGN:
        across = tl.cast(W - 1, ACC) / 2  # a size of 1 is a constant, which has no `.to`
        down = tl.cast(H - 1, ACC) / 2
    else:
        across = tl.cast(W, ACC) / 2
        down = tl.cast(H, ACC) / 2
    if LOGITS:
        third = tl.load(where + 2 * where_c + pixel, mask=exists, other=0).to(ACC)
        mask, rest = _sigmoid(third), _sigmoid(-third)
        # tanh x = 2 sigmoid(2 x) - 1; the sum with the pixel's own place loses nothing by it.
        move_x = 2 * _sigmoid(2 * first) - 1
        move_y = 2 * _sigmoid(2 * second) - 1
        slope_x = 4 * _sigmoid(2 * first) * _sigmoid(-2 * first) * across
        slope_y = 4 * _sigmoid(2 * second) * _sigmoid(-2 * second) * down
        own_x = x.to(ACC) * (2.0 / tl.maximum(OW - 1, 1).to(ACC))
        own_y = y.to(ACC) * (2.0 / tl.maximum(OH - 1, 1).to(ACC))
        position_x, position_y = (own_x + move_x) * across, (own_y + move_y) * down
    else:
        mask = tl.full(first.shape, 1, ACC)
        rest = tl.zeros(first.shape, ACC)
        slope_x = mask * across
        slope_y = mask * down
        position_x, position_y = (first + 1) * across, (second + 1) * down
    if not ALIGN:
        position_x, position_y = position_x - 0.5, position_y - 0.5
    return _clamp(position_x, W), _clamp(position_y, H), slope_x, slope_y, mask, rest


@triton.jit
def _corner(row, column, exists, H, W):
    """Index of a pixel of the source, and whether it is there."""
    there = exists & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    return tl.where(there, row * W + column, 0), there


@triton.jit
def _fetch(base, pixel, there, pixel_stride, c, c_stride, c_there, ACC: tl.constexpr):
    """A tile (pixels, channels); zero where there is nothing."""
    return tl.load(
        base + pixel[:, None] * pixel_stride + c[None, :] * c_stride,
        mask=there[:, None] & c_there[None, :],
        other=0,
    ).to(ACC)


@triton.jit
def warp_forward_kernel(
    where, features, h, warped, painted,
    C, H, W, OH, OW,
    where_b, where_c, features_b, features_c, features_p, h_b, h_c, h_p,
    warped_b, warped_c, warped_p, painted_b, painted_c, painted_p,
    LOGITS: tl.constexpr, PAINT: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Warped = mask * sample, painted = warped + (1 - mask) h."""
    b = tl.program_id(1).to(tl.int64)
    y, x, exists = _pixels(OH, OW, TILE_H, TILE_W)
    pixel = y * OW + x
    px, py, _, _, mask, rest = _places(
        where + b * where_b, where_c, pixel, y, x, exists, H, W, OH, OW, LOGITS, ALIGN, ACC
    )
    left, top = tl.floor(px), tl.floor(py)
    fx, fy = (px - left)[:, None], (py - top)[:, None]
    column, row = _whole(left), _whole(top)
    at00, there00 = _corner(row, column, exists, H, W)
    at01, there01 = _corner(row, column + 1, exists, H, W)
    at10, there10 = _corner(row + 1, column, exists, H, W)
    at11, there11 = _corner(row + 1, column + 1, exists, H, W)

    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = c < C
    source = features + b * features_b
    v00 = _fetch(source, at00, there00, features_p, c, features_c, real, ACC)
    v01 = _fetch(source, at01, there01, features_p, c, features_c, real, ACC)
    v10 = _fetch(source, at10, there10, features_p, c, features_c, real, ACC)
    v11 = _fetch(source, at11, there11, features_p, c, features_c, real, ACC)
    sample = (1 - fy) * ((1 - fx) * v00 + fx * v01) + fy * ((1 - fx) * v10 + fx * v11)
    sample = mask[:, None] * sample
    written = exists[:, None] & real[None, :]
    place = pixel[:, None] * warped_p + c[None, :] * warped_c
    tl.store(warped + b * warped_b + place, sample.to(warped.dtype.element_ty), mask=written)
    if PAINT:
        own = _fetch(h + b * h_b, pixel, exists, h_p, c, h_c, real, ACC)
        sample = sample + rest[:, None] * own
        place = pixel[:, None] * painted_p + c[None, :] * painted_c
        tl.store(painted + b * painted_b + place, sample.to(painted.dtype.element_ty), mask=written)


@triton.jit
def warp_backward_kernel(
    to_warped, to_painted, where, features, h, to_where, to_features, to_h,
    C, H, W, OH, OW,
    warped_b, warped_c, warped_p, painted_b, painted_c, painted_p,
    where_b, where_c, features_b, features_c, features_p, h_b, h_c, h_p,
    to_where_b, to_where_c, to_features_b, to_features_c, to_features_p, to_h_b, to_h_c, to_h_p,
    LOGITS: tl.constexpr, PAINT: tl.constexpr, SCATTER: tl.constexpr, ALIGN: tl.constexpr,
    ACC: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of where to sample, of h, and, added up as they come, of the features."""
    b = tl.program_id(1).to(tl.int64)
    y, x, exists = _pixels(OH, OW, TILE_H, TILE_W)
    pixel = y * OW + x
    px, py, slope_x, slope_y, mask, rest = _places(
        where + b * where_b, where_c, pixel, y, x, exists, H, W, OH, OW, LOGITS, ALIGN, ACC
    )
    left, top = tl.floor(px), tl.floor(py)
    fx, fy = (px - left)[:, None], (py - top)[:, None]
    column, row = _whole(left), _whole(top)
    at00, there00 = _corner(row, column, exists, H, W)
    at01, there01 = _corner(row, column + 1, exists, H, W)
    at10, there10 = _corner(row + 1, column, exists, H, W)
    at11, there11 = _corner(row + 1, column + 1, exists, H, W)

    to_x = tl.zeros((TILE_H * TILE_W,), ACC)
    to_y = tl.zeros((TILE_H * TILE_W,), ACC)
    to_mask = tl.zeros((TILE_H * TILE_W,), ACC)
    source = features + b * features_b
    # All channels of a pixel in one program: their sums need no further step.
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        real = c < C
        grad = _fetch(to_warped + b * warped_b, pixel, exists, warped_p, c, warped_c, real, ACC)
        if PAINT:
            to_out = _fetch(
                to_painted + b * painted_b, pixel, exists, painted_p, c, painted_c, real, ACC
            )
            own = _fetch(h + b * h_b, pixel, exists, h_p, c, h_c, real, ACC)
            grad += to_out
            tl.store(
                to_h + b * to_h_b + pixel[:, None] * to_h_p + c[None, :] * to_h_c,
                (rest[:, None] * to_out).to(to_h.dtype.element_ty),
                mask=exists[:, None] & real[None, :],
            )
            to_mask -= tl.sum(to_out * own, 1)
        v00 = _fetch(source, at00, there00, features_p, c, features_c, real, ACC)
        v01 = _fetch(source, at01, there01, features_p, c, features_c, real, ACC)
        v10 = _fetch(source, at10, there10, features_p, c, features_c, real, ACC)
        v11 = _fetch(source, at11, there11, features_p, c, features_c, real, ACC)
        upper, lower = (1 - fx) * v00 + fx * v01, (1 - fx) * v10 + fx * v11
        if LOGITS:
            to_mask += tl.sum(grad * ((1 - fy) * upper + fy * lower), 1)
        grad = mask[:, None] * grad
        to_x += tl.sum(grad * ((1 - fy) * (v01 - v00) + fy * (v11 - v10)), 1)
        to_y += tl.sum(grad * (lower - upper), 1)
        if SCATTER:
            target = to_features + b * to_features_b
            place = c[None, :] * to_features_c
            kept = real[None, :]
            tl.atomic_add(
                target + at00[:, None] * to_features_p + place,
                (1 - fy) * (1 - fx) * grad,
                mask=there00[:, None] & kept,
                sem="relaxed",
            )
            tl.atomic_add(
                target + at01[:, None] * to_features_p + place,
                (1 - fy) * fx * grad,
                mask=there01[:, None] & kept,
                sem="relaxed",
            )
            tl.atomic_add(
                target + at10[:, None] * to_features_p + place,
                fy * (1 - fx) * grad,
                mask=there10[:, None] & kept,
                sem="relaxed",
            )
            tl.atomic_add(
                target + at11[:, None] * to_features_p + place,
                fy * fx * grad,
                mask=there11[:, None] & kept,
                sem="relaxed",
            )
    to_where += b * to_where_b
    kind = to_where.dtype.element_ty
    tl.store(to_where + pixel, (to_x * slope_x).to(kind), mask=exists)
    tl.store(to_where + to_where_c + pixel, (to_y * slope_y).to(kind), mask=exists)
    if LOGITS:
        tl.store(to_where + 2 * to_where_c + pixel, (to_mask * mask * rest).to(kind), mask=exists)


@triton.jit
def corners_kernel(
    where, index, weight, H, W, OH, OW, where_b, where_c,
    LOGITS: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr,
):  # fmt: skip
    """Which pixel of the source each of the four neighbours of each position is, and its share.

    (B, OH * OW, 4), counted over all samples; B H W where there is none.
    """
    b = tl.program_id(1).to(tl.int64)
    y, x, exists = _pixels(OH, OW, TILE_H, TILE_W)
    pixel = y * OW + x
    px, py, _, _, mask, _ = _places(
        where + b * where_b, where_c, pixel, y, x, exists, H, W, OH, OW, LOGITS, ALIGN, ACC
    )
    left, top = tl.floor(px), tl.floor(py)
    fx, fy = px - left, py - top
    column, row = _whole(left), _whole(top)
    nowhere = tl.num_programs(1).to(tl.int64) * H * W
    place = (b * OH * OW + pixel) * 4
    for corner in tl.static_range(4):
        at, there = _corner(row + corner // 2, column + corner % 2, exists, H, W)
        share = mask * (fy if corner // 2 else 1 - fy) * (fx if corner % 2 else 1 - fx)
        tl.store(index + place + corner, tl.where(there, b * H * W + at, nowhere), mask=exists)
        tl.store(weight + place + corner, share, mask=exists)


@triton.jit
def gather_kernel(
    to_warped, to_painted, order, begin, weight, to_features, C, pixels, source_pixels,
    warped_b, warped_c, warped_p, painted_b, painted_c, painted_p,
    to_features_b, to_features_c, to_features_p,
    PAINT: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient of one pixel of the source: all that was sampled from it, in a fixed order."""
    target = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = c < C
    total = tl.zeros((BLOCK_C,), ACC)
    for i in range(tl.load(begin + target), tl.load(begin + target + 1)):
        entry = tl.load(order + i)
        b, pixel = entry // 4 // pixels, entry // 4 % pixels
        place = to_warped + b * warped_b + pixel * warped_p + c * warped_c
        grad = tl.load(place, mask=real, other=0).to(ACC)
        if PAINT:
            place = to_painted + b * painted_b + pixel * painted_p + c * painted_c
            grad += tl.load(place, mask=real, other=0).to(ACC)
        total += tl.load(weight + entry) * grad
    b, pixel = target // source_pixels, target % source_pixels
    place = to_features + b * to_features_b + pixel * to_features_p + c * to_features_c
    tl.store(place, total.to(to_features.dtype.element_ty), mask=real)


@triton.jit
def resample_kernel(
    x, gate, scale, bias, out,
    C, H, W, OH, OW, pad, gain, slope,
    x_b, x_c, x_p, gate_b, gate_c, gate_p, out_b, out_c, out_p,
    UP: tl.constexpr, DOWN: tl.constexpr, TAPS: tl.constexpr, GATE: tl.constexpr,
    SCALE: tl.constexpr, BIAS: tl.constexpr, ACTIVATE: tl.constexpr, ACC: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """act(scale gain FIR(a'(gate) x) + bias), a' being the slope of the activation at its result.

    With UP = 2 there are zeros between the pixels of x; the taps that would meet them are skipped.
    """
    b = tl.program_id(1).to(tl.int64)
    oy, ox, exists = _pixels(OH, OW, TILE_H, TILE_W)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = c < C
    x += b * x_b
    total = tl.zeros((TILE_H * TILE_W, BLOCK_C), ACC)
    first_y, first_x = oy * DOWN - pad, ox * DOWN - pad
    # With UP = 2 the first tap that meets a pixel is the one that makes the place even.
    skip_y = first_y & (UP - 1)
    skip_x = first_x & (UP - 1)
    for i in tl.static_range(0, TAPS, UP):
        row = (first_y + skip_y + i) // UP if UP == 1 else (first_y + skip_y + i) >> 1
        weight_y = (2 - tl.abs(skip_y + i - 1.5)) / 4
        there_y = exists & (row >= 0) & (row < H)
        for j in tl.static_range(0, TAPS, UP):
            column = (first_x + skip_x + j) // UP if UP == 1 else (first_x + skip_x + j) >> 1
            weight_x = (2 - tl.abs(skip_x + j - 1.5)) / 4
            there = there_y & (column >= 0) & (column < W)
            if TAPS > 1:
                pixel = tl.where(there, row * W + column, 0)
            else:
                pixel = oy * OW + ox  # of which the compiler can tell that it has no gaps
            value = _fetch(x, pixel, there, x_p, c, x_c, real, ACC)
            if GATE:
                result = _fetch(gate + b * gate_b, pixel, there, gate_p, c, gate_c, real, ACC)
                value = tl.where(result > 0, value, value * slope)
            if TAPS > 1:
                value = value * (weight_y * weight_x).to(ACC)[:, None]
            total += value
    total = total * gain
    if SCALE:
        total = total * tl.load(scale + b * C + c, mask=real, other=0).to(ACC)[None, :]
    if BIAS:
        total = total + tl.load(bias + c, mask=real, other=0).to(ACC)[None, :]
    if ACTIVATE:
        total = tl.where(total > 0, total, total * slope)
    place = out + b * out_b + (oy * OW + ox)[:, None] * out_p + c[None, :] * out_c
    tl.store(place, total.to(out.dtype.element_ty), mask=exists[:, None] & real[None, :])


@triton.jit
def inner_kernel(
    first, second, gate, out,
    C, pixels, share, slope,
    first_b, first_c, first_p, second_b, second_c, second_p, gate_b, gate_c, gate_p,
    SECOND: tl.constexpr, GATE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums over `share` pixels of a'(gate) first second, to out (shares, B, C)."""
    part, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = c < C
    total = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    end = tl.minimum((part + 1) * share, pixels)
    for start in range(part * share, end, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        exists = pixel < end
        value = _fetch(first + b * first_b, pixel, exists, first_p, c, first_c, real, ACC)
        if SECOND:
            value *= _fetch(second + b * second_b, pixel, exists, second_p, c, second_c, real, ACC)
        if GATE:
            result = _fetch(gate + b * gate_b, pixel, exists, gate_p, c, gate_c, real, ACC)
            value = tl.where(result > 0, value, value * slope)
        total += value
    place = out + (part * tl.num_programs(1) + b) * C + c
    tl.store(place, tl.sum(total, 0), mask=real)


def warp(
    where: Tensor,
    features: Tensor,
    h: Tensor | None,
    warped: Tensor,
    painted: Tensor | None,
    logits: bool,
    align_corners: bool,
) -> None:
    """Fill `warped` and, where there is `h`, `painted`."""
    batch, channels, height, width = features.shape
    rows, columns = warped.shape[2:]
    th, tw, bc = _tile(warped, 2048)
    grid = (_tiles(rows, columns, th, tw), batch, triton.cdiv(channels, bc))
    with _on(features):
        warp_forward_kernel[grid](
            where, features, h, warped, painted,
            channels, height, width, rows, columns,
            *_strides(where)[:2], *_strides(features), *_strides(h),
            *_strides(warped), *_strides(painted),
            LOGITS=logits, PAINT=h is not None, ALIGN=align_corners,
            ACC=_accumulator(where, warped), TILE_H=th, TILE_W=tw, BLOCK_C=bc,
        )  # fmt: skip


def warp_backward(
    to_warped: Tensor,
    to_painted: Tensor | None,
    where: Tensor,
    features: Tensor,
    h: Tensor | None,
    to_where: Tensor,
    to_features: Tensor | None,
    to_h: Tensor | None,
    logits: bool,
    align_corners: bool,
    deterministic: bool,
) -> None:
    """Fill the gradients of where to sample, of the features, and of `h`.

    Several pixels may be sampled from one: their gradients are added up as they come, or, where
    the order must not matter, sorted first.
    """
    batch, channels, height, width = features.shape
    rows, columns = to_warped.shape[2:]
    accumulator = _accumulator(where, to_warped)
    at_once = to_features is not None and not deterministic
    exact = torch.float64 if accumulator == tl.float64 else torch.float32
    th, tw, bc = _tile(to_warped, 1024)
    # Samples in such parts that what is added up stays in the cache until it is complete.
    size = channels * height * width * exact.itemsize
    part = max(1, min(batch, CACHED // size)) if at_once else batch
    sums = None
    if at_once and to_features.dtype != exact:
        sums = torch.empty_like(to_features[:part], dtype=exact)
    with _on(features):
        for start in range(0, batch, part):

            def of(x: Tensor | None, start: int = start) -> Tensor | None:
                return None if x is None else x[start : start + part]

            made = of(to_features)
            target = None if not at_once else made if sums is None else sums[: len(made)]
            if target is not None:
                target.zero_()
            given = [of(x) for x in (to_warped, to_painted, where, features, h)]
            others = of(to_where), of(to_h)
            warp_backward_kernel[(_tiles(rows, columns, th, tw), len(given[0]))](
                *given, others[0], target, others[1],
                channels, height, width, rows, columns,
                *_strides(to_warped), *_strides(to_painted), *_strides(where)[:2],
                *_strides(features), *_strides(h),
                *_strides(to_where)[:2], *_strides(target), *_strides(to_h),
                LOGITS=logits, PAINT=h is not None, SCATTER=at_once, ALIGN=align_corners,
                ACC=accumulator, TILE_H=th, TILE_W=tw, BLOCK_C=bc,
            )  # fmt: skip
            if sums is not None:
                made.copy_(target)
        if to_features is None or at_once:
            return
        index = where.new_empty(batch, rows * columns, 4, dtype=torch.int64)
        weight = where.new_empty(index.shape, dtype=exact)
        corners_kernel[(_tiles(rows, columns, th, tw), batch)](
            where, index, weight, height, width, rows, columns, *_strides(where)[:2],
            LOGITS=logits, ALIGN=align_corners, ACC=accumulator, TILE_H=th, TILE_W=tw,
        )  # fmt: skip
        found, order = index.flatten().sort(stable=True)
        pixels = torch.arange(batch * height * width + 1, device=index.device)
        begin = torch.searchsorted(found, pixels)
        block = min(1024, triton.next_power_of_2(channels))
        gather_kernel[(batch * height * width, triton.cdiv(channels, block))](
            to_warped, to_painted, order, begin, weight, to_features,
            channels, rows * columns, height * width,
            *_strides(to_warped), *_strides(to_painted), *_strides(to_features),
            PAINT=h is not None, ACC=accumulator, BLOCK_C=block,
        )  # fmt: skip


def resample(
    x: Tensor,
    gate: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    out: Tensor,
    up: int,
    down: int,
    taps: int,
    pad: int,
    gain: float,
    slope: float,
    activate: bool,
) -> None:
    """Fill `out`; see `resample_kernel`."""
    batch, channels, height, width = x.shape
    rows, columns = out.shape[2:]
    th, tw, bc = _tile(out, 2048 if taps == 1 else 1024)
    with _on(x):
        resample_kernel[(_tiles(rows, columns, th, tw), batch, triton.cdiv(channels, bc))](
            x, gate, scale, bias, out,
            channels, height, width, rows, columns, pad, gain, slope,
            *_strides(x), *_strides(gate), *_strides(out),
            UP=up, DOWN=down, TAPS=taps, GATE=gate is not None, SCALE=scale is not None,
            BIAS=bias is not None, ACTIVATE=activate, ACC=_accumulator(x),
            TILE_H=th, TILE_W=tw, BLOCK_C=bc,
        )  # fmt: skip


def inner(first: Tensor, second: Tensor | None, gate: Tensor | None, slope: float) -> Tensor:
    """Sums over the pixels of each channel, (B, C) in float32 or float64; see `inner_kernel`."""
    batch, channels, height, width = first.shape
    pixels = height * width
    th, tw, bc = _tile(first, 1024)
    block = th * tw
    # So many parts that the whole GPU has work, each of at least a few blocks.
    parts = max(1, min(triton.cdiv(pixels, 4 * block), 4096 // (batch * triton.cdiv(channels, bc))))
    share = triton.cdiv(triton.cdiv(pixels, parts), block) * block
    parts = triton.cdiv(pixels, share)
    accumulator = _accumulator(first)
    out = first.new_empty(
        parts, batch, channels,
        dtype=torch.float64 if accumulator == tl.float64 else torch.float32,
    )  # fmt: skip
    with _on(first):
        inner_kernel[(parts, batch, triton.cdiv(channels, bc))](
            first, second, gate, out, channels, pixels, share, slope,
            *_strides(first), *_strides(second), *_strides(gate),
            SECOND=second is not None, GATE=gate is not None, ACC=accumulator,
            BLOCK_P=block, BLOCK_C=bc,
        )  # fmt: skip
    return out[0] if parts == 1 else out.sum(0)


def _on(x: Tensor):
    """Launches go to the current GPU, which need not be the tensors'."""
    return torch.cuda.device(x.device if x.is_cuda else -1)  # -1 does nothing


def _accumulator(*tensors: Tensor) -> tl.dtype:
    return tl.float64 if any(t.dtype == torch.float64 for t in tensors) else tl.float32


def _strides(x: Tensor | None) -> tuple[int, int, int]:
    """From a sample, a channel, a pixel to the next."""
    if x is None:
        return 0, 0, 0
    channels, pixels = x.shape[1], x.shape[2] * x.shape[3]
    if x.is_contiguous():
        return channels * pixels, pixels, 1
    last = x[:1].is_contiguous(memory_format=torch.channels_last)
    # One sample may stand for all.
    sample = x.stride(0) if x.shape[0] > 1 else 0
    return (sample, 1, channels) if last and not x[:1].is_contiguous() else (sample, pixels, 1)


def _tile(x: Tensor, elements: int) -> tuple[int, int, int]:
    """Rows, columns and channels of a tile of at most so many elements, powers of two.

    Squares of pixels, which share neighbours, but wide along what lies together in memory.
    """
    channels, height, width = x.shape[1:]
    last = _strides(x)[1] == 1 and channels > 1
    block = min(triton.next_power_of_2(channels), 64 if last else 2)
    pixels = elements // block
    wide = triton.next_power_of_2(width)
    tw = min(wide, pixels, max(1, 2 ** ((pixels.bit_length()) // 2)) if last else 64)
    th = min(triton.next_power_of_2(height), pixels // tw)
    return th, tw, block


def _tiles(height: int, width: int, th: int, tw: int) -> int:
    return triton.cdiv(height, th) * triton.cdiv(width, tw)
