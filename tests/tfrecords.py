"""TFRecord files as TensorFlow writes them, byte for byte, and a CRC32C of its own."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_POLYNOMIAL = 0x82F63B78  # Castagnoli, bits reversed


def crc32c(data: bytes) -> int:
    """Bit by bit; slow, for check values and short inputs."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes, crc=crc32c) -> bytes:
    value = crc(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(number: int) -> bytes:
    out = b""
    while number >= 0x80:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def message(number: int, content: bytes) -> bytes:
    """A field that holds bytes, text or another message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def byte_list(value: bytes) -> bytes:
    return message(1, message(1, value))


def float_list(values: Sequence[float], packed: bool = True) -> bytes:
    if packed:
        content = message(1, struct.pack(f"<{len(values)}f", *values))
    else:
        content = b"".join(varint(1 << 3 | 5) + struct.pack("<f", value) for value in values)
    return message(2, content)


def example(features: dict[str, bytes]) -> bytes:
    """A serialised tf.train.Example."""
    entries = (message(1, message(1, k.encode()) + message(2, v)) for k, v in features.items())
    return message(1, b"".join(entries))


def write(path: Path, records: Sequence[bytes], crc=crc32c) -> list[int]:
    """Write a TFRecord file and return where each record begins, and its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    places = [0]
    with path.open("wb") as file:
        for data in records:
            length = struct.pack("<Q", len(data))
            file.write(length + masked(length) + data + masked(data, crc))
            places.append(file.tell())
    return places


def push(
    aux: np.ndarray, main: np.ndarray | None = None, actions: np.ndarray | None = None, **how
) -> bytes:
    """One sequence in softmotion30_44k's features; frames uint8 (T,H,W,3), actions (T,4)."""
    features = {}
    for t in range(len(aux)):
        picture = (aux if main is None else main)[t]
        features[f"{t}/image_main/encoded"] = byte_list(picture.tobytes())
        features[f"{t}/image_aux1/encoded"] = byte_list(aux[t].tobytes())
        action = np.zeros(4) if actions is None else actions[t]
        features[f"{t}/action"] = float_list(action.tolist(), **how)
        features[f"{t}/endeffector_pos"] = float_list([0.1, 0.2, 0.3], **how)
    return example(features)
