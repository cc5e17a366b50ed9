"""The Triton kernels, and what launches them; the only module that imports triton.

Every kernel works on tiles of pixels x channels of one sample and computes in float32 (float64
where that is stored), whatever the tensors hold: loads convert, stores round. Tensors may be
laid out plane by plane or channels last; a kernel gets the distances between samples, channels and
pixels. Which arrangement of a tile is read without gaps follows from the distance that is 1.

Shapes: B samples, C channels, H x W pixels of what is read, OH x OW of what is written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


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
    to_warped, to_painted, where, features, h, to_where, to_sample, to_h,
    C, H, W, OH, OW,
    warped_b, warped_c, warped_p, painted_b, painted_c, painted_p,
    where_b, where_c, features_b, features_c, features_p, h_b, h_c, h_p,
    to_where_b, to_where_c, to_sample_b, to_sample_c, to_sample_p, to_h_b, to_h_c, to_h_p,
    LOGITS: tl.constexpr, PAINT: tl.constexpr, KEEP: tl.constexpr, ALIGN: tl.constexpr,
    ACC: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of where to sample, of h, and, with KEEP, of the samples."""
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
        if KEEP:
            tl.store(
                to_sample + b * to_sample_b + pixel[:, None] * to_sample_p
                + c[None, :] * to_sample_c,
                grad.to(to_sample.dtype.element_ty),
                mask=exists[:, None] & real[None, :],
            )  # fmt: skip
        to_x += tl.sum(grad * ((1 - fy) * (v01 - v00) + fy * (v11 - v10)), 1)
        to_y += tl.sum(grad * (lower - upper), 1)
    to_where += b * to_where_b
    kind = to_where.dtype.element_ty
    tl.store(to_where + pixel, (to_x * slope_x).to(kind), mask=exists)
    tl.store(to_where + to_where_c + pixel, (to_y * slope_y).to(kind), mask=exists)
    if LOGITS:
        tl.store(to_where + 2 * to_where_c + pixel, (to_mask * mask * rest).to(kind), mask=exists)


@triton.jit
def chain_kernel(
    where, cell, share, first, following, H, W, OH, OW, where_b, where_c,
    LOGITS: tl.constexpr, ALIGN: tl.constexpr, CHAIN: tl.constexpr, ACC: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr,
):  # fmt: skip
    """In which cell of the source each pixel is sampled, and its place in there.

    A cell is what lies between four neighbours, by number (H + 1) x (W + 1) with those at the
    borders; to `share` (B, 2, OH * OW) go the parts of the way through it. With CHAIN all pixels
    of a cell form a chain: `first` (B, cells) is one of them, or -1, and `following` (B, OH * OW)
    the next after each. Else their cells, over all samples, go to `cell` (B, OH * OW), one past the
    last where there is none.
    """
    b = tl.program_id(1).to(tl.int64)
    y, x, exists = _pixels(OH, OW, TILE_H, TILE_W)
    pixel = y * OW + x
    px, py, _, _, _, _ = _places(
        where + b * where_b, where_c, pixel, y, x, exists, H, W, OH, OW, LOGITS, ALIGN, ACC
    )
    left, top = tl.floor(px), tl.floor(py)
    column, row = _whole(left), _whole(top)
    pixels, cells = OH * OW, (H + 1) * (W + 1)
    share += b * 2 * pixels
    tl.store(share + pixel, px - left, mask=exists)
    tl.store(share + pixels + pixel, py - top, mask=exists)
    seen = exists & (row >= -1) & (row < H) & (column >= -1) & (column < W)
    number = (row + 1) * (W + 1) + column + 1
    if CHAIN:
        number = tl.where(seen, number, 0)
        before = tl.atomic_xchg(first + b * cells + number, pixel, mask=seen, sem="relaxed")
        tl.store(following + b * pixels + pixel, before, mask=seen)
    else:
        number = tl.where(seen, b * cells + number, tl.num_programs(1).to(tl.int64) * cells)
        tl.store(cell + b * pixels + pixel, number, mask=exists)


@triton.jit
def _sampled(
    pixel, to_sample, share, following, pixels, c, real, to_sample_c, to_sample_p,
    RIGHT: tl.constexpr, LOWER: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What pixels that were sampled in a cell give back to one of its corners; those after them."""
    there = pixel >= 0
    pixel = tl.where(there, pixel, 0)
    after = tl.load(following + pixel, mask=there, other=-1)
    fx = tl.load(share + pixel, mask=there, other=0)
    fy = tl.load(share + pixels + pixel, mask=there, other=0)
    weight = (fx if RIGHT else 1 - fx) * (fy if LOWER else 1 - fy)
    grad = _fetch(to_sample, pixel, there, to_sample_p, c, to_sample_c, real, ACC)
    return weight[:, None] * grad, after


@triton.jit
def gather_kernel(
    to_sample, share, first, following, to_features,
    C, H, W, pixels,
    to_sample_b, to_sample_c, to_sample_p, to_features_b, to_features_c, to_features_p,
    ACC: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradients of pixels of the source: all that was sampled in the four cells around each."""
    b = tl.program_id(1).to(tl.int64)
    y, x, exists = _pixels(H, W, TILE_H, TILE_W)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = c < C
    to_sample += b * to_sample_b
    share += b * 2 * pixels
    following += b * pixels
    # The cells right below, left below, right above, left above.
    first += b * (H + 1) * (W + 1)
    cell = (y + 1) * (W + 1) + x + 1
    one = tl.load(first + cell, mask=exists, other=-1)
    two = tl.load(first + cell - 1, mask=exists, other=-1)
    three = tl.load(first + cell - (W + 1), mask=exists, other=-1)
    four = tl.load(first + cell - (W + 2), mask=exists, other=-1)
    total = tl.zeros((TILE_H * TILE_W, BLOCK_C), ACC)
    while tl.max(tl.maximum(tl.maximum(one, two), tl.maximum(three, four)), 0) >= 0:
        value, one = _sampled(
            one, to_sample, share, following, pixels, c, real, to_sample_c, to_sample_p,
            False, False, ACC,
        )  # fmt: skip
        total += value
        value, two = _sampled(
            two, to_sample, share, following, pixels, c, real, to_sample_c, to_sample_p,
            True, False, ACC,
        )  # fmt: skip
        total += value
        value, three = _sampled(
            three, to_sample, share, following, pixels, c, real, to_sample_c, to_sample_p,
            False, True, ACC,
        )  # fmt: skip
        total += value
        value, four = _sampled(
            four, to_sample, share, following, pixels, c, real, to_sample_c, to_sample_p,
            True, True, ACC,
        )  # fmt: skip
        total += value
    place = (y * W + x)[:, None] * to_features_p + c[None, :] * to_features_c
    written = exists[:, None] & real[None, :]
    kind = to_features.dtype.element_ty
    tl.store(to_features + b * to_features_b + place, total.to(kind), mask=written)


@triton.jit
def _gated(
    x, gate, pixel, there, x_c, x_p, gate_c, gate_p, c, real,
    GATE: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """a'(gate) x, a' being the slope of the activation at its result."""
    value = _fetch(x, pixel, there, x_p, c, x_c, real, ACC)
    if GATE:
        result = _fetch(gate, pixel, there, gate_p, c, gate_c, real, ACC)
        value = tl.where(result > 0, value, value * SLOPE)
    return value


@triton.jit
def _finish(
    total, scale, bias, c, real,
    GAIN: tl.constexpr, SLOPE: tl.constexpr,
    SCALE: tl.constexpr, BIAS: tl.constexpr, ACTIVATE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """act(scale gain total + bias). Constants are compiled in: arguments are rounded to float32."""
    total = total * GAIN
    if SCALE:
        total = total * tl.load(scale + c, mask=real, other=0).to(ACC)[None, :]
    if BIAS:
        total = total + tl.load(bias + c, mask=real, other=0).to(ACC)[None, :]
    if ACTIVATE:
        total = tl.where(total > 0, total, total * SLOPE)
    return total


@triton.jit
def resample_kernel(
    x, gate, scale, bias, out,
    C, H, W, OH, OW, pad,
    x_b, x_c, x_p, gate_b, gate_c, gate_p, out_b, out_c, out_p,
    GAIN: tl.constexpr, SLOPE: tl.constexpr, UP: tl.constexpr, GATE: tl.constexpr,
    SCALE: tl.constexpr, BIAS: tl.constexpr, ACTIVATE: tl.constexpr, ACC: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """act(scale gain FIR(a'(gate) x) + bias) with zeros between the pixels of x; UP = 1: no filter.

    Of the filter's four taps along an axis two meet a pixel of x.
    """
    b = tl.program_id(1).to(tl.int64)
    oy, ox, exists = _pixels(OH, OW, TILE_H, TILE_W)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = c < C
    x += b * x_b
    if GATE:
        gate += b * gate_b
    if UP == 1:
        pixel = oy * OW + ox
        total = _gated(x, gate, pixel, exists, x_c, x_p, gate_c, gate_p, c, real, GATE, SLOPE, ACC)
    else:
        total = tl.zeros((TILE_H * TILE_W, BLOCK_C), ACC)
        first_y, first_x = oy - pad, ox - pad
        # The first tap that meets a pixel is the one that makes the place even.
        skip_y = first_y & 1
        skip_x = first_x & 1
        for i in tl.static_range(0, 4, 2):
            row = (first_y + skip_y + i) >> 1
            weight_y = (2 - tl.abs(skip_y + i - 1.5)) / 4
            there_y = exists & (row >= 0) & (row < H)
            for j in tl.static_range(0, 4, 2):
                column = (first_x + skip_x + j) >> 1
                weight_x = (2 - tl.abs(skip_x + j - 1.5)) / 4
                there = there_y & (column >= 0) & (column < W)
                pixel = tl.where(there, row * W + column, 0)
                value = _gated(
                    x, gate, pixel, there, x_c, x_p, gate_c, gate_p, c, real, GATE, SLOPE, ACC
                )
                total += value * (weight_y * weight_x).to(ACC)[:, None]
    if SCALE:
        scale += b * C
    total = _finish(total, scale, bias, c, real, GAIN, SLOPE, SCALE, BIAS, ACTIVATE, ACC)
    place = out + b * out_b + (oy * OW + ox)[:, None] * out_p + c[None, :] * out_c
    tl.store(place, total.to(out.dtype.element_ty), mask=exists[:, None] & real[None, :])


@triton.jit
def _filtered_row(
    x, gate, row, first_x, exists, H, W, x_c, x_p, gate_c, gate_p, c, real,
    GATE: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Four neighbours of a row of x, weighted 1, 3, 3, 1, for each column."""
    there_y = exists & (row >= 0) & (row < H)
    for j in tl.static_range(4):
        column = first_x + j
        there = there_y & (column >= 0) & (column < W)
        pixel = tl.where(there, row * W + column, 0)
        value = _gated(x, gate, pixel, there, x_c, x_p, gate_c, gate_p, c, real, GATE, SLOPE, ACC)
        if j == 0:
            total = value
        elif j == 3:
            total += value
        else:
            total += 3 * value
    return total


@triton.jit
def filter_kernel(
    x, gate, scale, bias, out,
    C, H, W, OH, OW, pad,
    x_b, x_c, x_p, gate_b, gate_c, gate_p, out_b, out_c, out_p,
    GAIN: tl.constexpr, SLOPE: tl.constexpr, DOWN: tl.constexpr, GATE: tl.constexpr,
    SCALE: tl.constexpr, BIAS: tl.constexpr, ACTIVATE: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, TILE_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """act(scale gain FIR(a'(gate) x) + bias): down a column of the result, row by row.

    A row of x that was filtered along its length serves up to four rows of the result.
    """
    b = tl.program_id(1).to(tl.int64)
    tiles = tl.cdiv(OW, TILE_W)
    oy = (tl.program_id(0) // tiles) * ROWS
    ox = (tl.program_id(0) % tiles) * TILE_W + tl.arange(0, TILE_W)
    exists = ox < OW
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = c < C
    x += b * x_b
    if GATE:
        gate += b * gate_b
    if SCALE:
        scale += b * C
    out += b * out_b
    row, first_x = oy * DOWN - pad, ox * DOWN - pad
    one = _filtered_row(
        x, gate, row, first_x, exists, H, W, x_c, x_p, gate_c, gate_p, c, real, GATE, SLOPE, ACC
    )
    two = _filtered_row(
        x, gate, row + 1, first_x, exists, H, W, x_c, x_p, gate_c, gate_p, c, real, GATE, SLOPE, ACC
    )
    three = one
    if DOWN == 1:
        three = _filtered_row(
            x, gate, row + 2, first_x, exists, H, W, x_c, x_p, gate_c, gate_p, c, real,
            GATE, SLOPE, ACC,
        )  # fmt: skip
    for i in tl.static_range(ROWS):
        if DOWN == 2:
            three = _filtered_row(
                x, gate, row + 2 * i + 2, first_x, exists, H, W, x_c, x_p, gate_c, gate_p, c, real,
                GATE, SLOPE, ACC,
            )  # fmt: skip
        four = _filtered_row(
            x, gate, row + DOWN * i + 3, first_x, exists, H, W, x_c, x_p, gate_c, gate_p, c, real,
            GATE, SLOPE, ACC,
        )  # fmt: skip
        total = (one + 3 * two + 3 * three + four) * (1 / 64)
        total = _finish(total, scale, bias, c, real, GAIN, SLOPE, SCALE, BIAS, ACTIVATE, ACC)
        place = ((oy + i) * OW + ox)[:, None] * out_p + c[None, :] * out_c
        written = (exists & (oy + i < OH))[:, None] & real[None, :]
        tl.store(out + place, total.to(out.dtype.element_ty), mask=written)
        if DOWN == 1:
            one = two
            two = three
            three = four
        else:
            one = three
            two = four


@triton.jit
def inner_kernel(
    first, second, gate, out,
    C, pixels, share,
    first_b, first_c, first_p, second_b, second_c, second_p, gate_b, gate_c, gate_p,
    SLOPE: tl.constexpr, SECOND: tl.constexpr, GATE: tl.constexpr, ACC: tl.constexpr,
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
            value = tl.where(result > 0, value, value * SLOPE)
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
    th, tw, bc = _tile(warped, 4096 // warped.element_size())
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

    Several pixels may be sampled from one. Each pixel of the source collects from those that were
    sampled around it, instead of each of those adding to it: that would be slower by far, since
    whatever adds has to wait for all others. In a fixed order where asked for, which takes a sort.
    """
    batch, channels, height, width = features.shape
    rows, columns = to_warped.shape[2:]
    accumulator = _accumulator(where, to_warped)
    th, tw, bc = _tile(to_warped, 1024)
    # What goes back to the features is kept for the kernel that collects it.
    keep = logits and to_features is not None
    to_sample = torch.empty_like(to_warped) if keep else to_warped
    with _on(features):
        warp_backward_kernel[(_tiles(rows, columns, th, tw), batch)](
            to_warped, to_painted, where, features, h, to_where, to_sample, to_h,
            channels, height, width, rows, columns,
            *_strides(to_warped), *_strides(to_painted), *_strides(where)[:2], *_strides(features),
            *_strides(h), *_strides(to_where)[:2], *_strides(to_sample), *_strides(to_h),
            LOGITS=logits, PAINT=h is not None, KEEP=keep, ALIGN=align_corners,
            ACC=accumulator, TILE_H=th, TILE_W=tw, BLOCK_C=bc,
            num_warps=4 if to_warped.element_size() == 2 else 8,  # measured on an H200
        )  # fmt: skip
        if to_features is None:
            return
        pixels, cells = rows * columns, (height + 1) * (width + 1)
        share = where.new_empty(
            batch, 2, pixels, dtype=torch.float64 if accumulator == tl.float64 else torch.float32
        )
        following = torch.empty(batch, pixels, dtype=torch.int32, device=where.device)
        cell = first = None
        if deterministic:
            cell = torch.empty(batch * pixels, dtype=torch.int64, device=where.device)
        else:
            first = torch.full((batch, cells), -1, dtype=torch.int32, device=where.device)
        ch, cw = min(8, triton.next_power_of_2(rows)), min(32, triton.next_power_of_2(columns))
        chain_kernel[(_tiles(rows, columns, ch, cw), batch)](
            where, cell, share, first, following, height, width, rows, columns,
            *_strides(where)[:2],
            LOGITS=logits, ALIGN=align_corners, CHAIN=not deterministic, ACC=accumulator,
            TILE_H=ch, TILE_W=cw,
        )  # fmt: skip
        if cell is not None:
            first = _chain_in_order(cell, following, batch * cells)
        th, tw, bc = _tile(to_features, 1024)
        gather_kernel[(_tiles(height, width, th, tw), batch, triton.cdiv(channels, bc))](
            to_sample, share, first, following, to_features, channels, height, width, pixels,
            *_strides(to_sample), *_strides(to_features),
            ACC=accumulator, TILE_H=th, TILE_W=tw, BLOCK_C=bc,
        )  # fmt: skip


def _chain_in_order(cell: Tensor, following: Tensor, cells: int) -> Tensor:
    """Chain the pixels of each cell in their own order; the first ones (cells,), or -1."""
    found, order = cell.sort(stable=True)
    pixel = (order % following.shape[1]).int()
    after = pixel.roll(-1).where(found == found.roll(-1), -1)
    after[-1] = -1
    following.view(-1)[order] = after
    every = torch.arange(cells, device=cell.device)
    begin = torch.searchsorted(found, every).clamp_(max=len(found) - 1)
    return pixel[begin].where(found[begin] == every, -1)


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
    """Fill `out`; see `resample_kernel` and `filter_kernel`."""
    batch, channels, height, width = x.shape
    rows, columns = out.shape[2:]
    given = (
        x, gate, scale, bias, out, channels, height, width, rows, columns, pad,
        *_strides(x), *_strides(gate), *_strides(out),
    )  # fmt: skip
    kind = {
        "GAIN": gain, "SLOPE": slope, "GATE": gate is not None, "SCALE": scale is not None,
        "BIAS": bias is not None, "ACTIVATE": activate, "ACC": _accumulator(x),
    }  # fmt: skip
    with _on(x):
        if taps == 4 and up == 1:
            deep, tw, bc = _column(out, 8 // down)
            grid = triton.cdiv(rows, deep) * triton.cdiv(columns, tw)
            filter_kernel[(grid, batch, triton.cdiv(channels, bc))](
                *given, DOWN=down, ROWS=deep, TILE_W=tw, BLOCK_C=bc, **kind
            )
            return
        th, tw, bc = _tile(out, 2048 if taps == 1 else 1024)
        resample_kernel[(_tiles(rows, columns, th, tw), batch, triton.cdiv(channels, bc))](
            *given, UP=up, TILE_H=th, TILE_W=tw, BLOCK_C=bc, **kind
        )


def inner(first: Tensor, second: Tensor | None, gate: Tensor | None, slope: float) -> Tensor:
    """Sums over the pixels of each channel, (B, C) in float32 or float64; see `inner_kernel`."""
    batch, channels, height, width = first.shape
    pixels = height * width
    th, tw, bc = _tile(first, 4096)
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
            first, second, gate, out, channels, pixels, share,
            *_strides(first), *_strides(second), *_strides(gate),
            SLOPE=slope, SECOND=second is not None, GATE=gate is not None, ACC=accumulator,
            BLOCK_P=block, BLOCK_C=bc, num_warps=8,
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


def _column(x: Tensor, deepest: int) -> tuple[int, int, int]:
    """Rows that a program writes one after the other, and the columns and channels of each."""
    batch, channels, height, width = x.shape
    every = triton.next_power_of_2(channels)
    last = _strides(x)[1] == 1 and channels > 1
    tw = min(triton.next_power_of_2(width), 512 // min(every, 64 if last else 2))
    bc = min(every, 512 // tw)
    # Long columns save work, as long as there are some for all of the GPU.
    columns = batch * triton.cdiv(width, tw) * triton.cdiv(channels, bc)
    enough = [rows for rows in (8, 4) if rows <= deepest and columns * (height // rows) >= 1024]
    return enough[0] if enough else 2, tw, bc


def _tiles(height: int, width: int, th: int, tw: int) -> int:
    return triton.cdiv(height, th) * triton.cdiv(width, tw)
