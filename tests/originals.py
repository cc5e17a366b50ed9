"""The originals' stand-in weights as tensors, and their golden values."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
import recipe  # noqa: E402


def singular(filled, key, dim):
    """What `recipe._spectral` gives, in a fraction of its time: it iterates with W W^T."""
    weight = np.moveaxis(filled[key.rsplit(".", 1)[0] + ".weight_orig"], dim, 0)
    weight = weight.astype(np.float64).reshape(weight.shape[0], -1)
    gram, u = weight @ weight.T, weight.sum(axis=1)
    for _ in range(199):
        u /= np.linalg.norm(u)
        u = gram @ u
    u /= np.linalg.norm(u)
    v = weight.T @ u
    return (u if key.endswith("_u") else v / np.linalg.norm(v)).astype(np.float32)


@cache
def weights(system: str) -> dict[str, dict[str, torch.Tensor]]:
    """{network: state dict} in the original's names."""
    slow, recipe._spectral = recipe._spectral, singular
    try:
        filled = recipe.weights(GOLDEN / f"{system}.keys.json")
    finally:
        recipe._spectral = slow
    return {
        name: {k: torch.from_numpy(np.array(v)) for k, v in state.items()}
        for name, state in filled.items()
    }


@cache
def golden(system: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{system}.npz") as data:
        return {k: torch.from_numpy(data[k]) for k in data.files}


def load_discriminator(network: torch.nn.Module, state: dict[str, torch.Tensor], names) -> None:
    """Fill a spectrally normalised discriminator; `names` turns the original's layer into ours."""
    parts = {"orig": "original", "u": "0._u", "v": "0._v"}
    ours = {}
    for key, value in state.items():
        layer, _, entry = key.rpartition(".")
        if entry != "bias":
            entry = f"parametrizations.weight.{parts[entry.removeprefix('weight_')]}"
        ours[f"{names(layer)}.{entry}"] = value
    network.load_state_dict(ours)


def assert_images(actual, expected):
    difference = (actual - expected).abs()
    assert difference.max() < 1e-3
    assert difference.mean() < 1e-5
