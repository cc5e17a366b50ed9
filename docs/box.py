"""Pack a trained LIA into the program: what `--checkpoint puppets` loads.

    python docs/box.py CHECKPOINT EXPERIMENT [--data NAME=VALUE ...]

Measures its directions along the axes that explain single poses best (which changes no picture),
rounds the weights to bfloat16, and writes lmdvid/weights/puppets: model.safetensors, config.json,
experiment.yaml, directions.json, and card.json with the scores of the packed weights on held-out
identities. The report is out/box/index.html.
"""

import argparse
import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
import yaml

from lmdvid import cli
from lmdvid.commands.interpret import data_of
from lmdvid.interpret.ground_truth import distinct, supervised_rotation
from lmdvid.interpret.measure import observe
from lmdvid.manipulate import Manipulator
from lmdvid.pretrained import BOX, WEIGHTS_FILE, load_network, save_network

FOLDER = BOX / "puppets"
FIT_FRAMES = 4000
LARGEST = 8_000_000  # bytes


def rotation(manipulator: Manipulator, experiment: Path, changes: list[str]) -> torch.Tensor:
    """The rotation (N, N) that explains the poses of training clips best."""
    data = data_of(experiment, changes)
    clips = (data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader())
    seen = observe(manipulator, clips, FIT_FRAMES, transfer=False)
    alpha, pose = np.concatenate(seen.alpha), np.concatenate(seen.pose)
    return torch.from_numpy(
        supervised_rotation(alpha, pose[:, distinct(pose, data.pose_names).columns])
    )


def main() -> None:
    """Pack."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--data", action="append", default=[])
    options = parser.parse_args()
    step = torch.load(options.checkpoint, weights_only=True, map_location="cpu")["global_step"]
    network = load_network(options.checkpoint)
    network.rotate_directions(  # pyright: ignore[reportCallIssue]
        rotation(Manipulator(network), options.experiment, options.data)
    )
    save_network(network, FOLDER, torch.bfloat16)
    shutil.copyfile(options.experiment, FOLDER / "experiment.yaml")
    changes = [word for change in options.data for word in ("--data", change)]
    # By its path, so that directions.json is written beside the weights.
    if cli.main(["interpret", "--checkpoint", str(FOLDER), "--output", "out/box", *changes]):
        raise SystemExit("packing stopped, see above")
    report = json.loads(Path("out/box/report.json").read_text())
    truth = report["ground_truth"]["as trained"]
    weights = (FOLDER / WEIGHTS_FILE).read_bytes()
    if len(weights) > LARGEST:
        raise SystemExit(
            f"{FOLDER / WEIGHTS_FILE} has {len(weights):,} bytes: too large to install"
        )
    card = {
        "network": "LIA on puppet heads",
        "made_by": [
            f"lightning fit --config experiments/{options.experiment.name}",
            f"python docs/box.py CHECKPOINT experiments/{options.experiment.name}",
        ],
        "seed": yaml.safe_load(options.experiment.read_text())["seed_everything"],
        "step": step,
        "parameters": sum(p.numel() for p in network.parameters()),
        "weights": {
            "bytes": len(weights),
            "dtype": "bfloat16",
            "sha256": sha256(weights).hexdigest(),
        },
        "coordinates": "axes of the directions' span that explain single poses best",
        "scores": {
            **report["transfer"],
            "best_r2": truth["best_r2"],
            "disentanglement": truth["dci"]["disentanglement"],
            "completeness": truth["dci"]["completeness"],
            "identity_in_alpha": report["leakage"]["identity_in_alpha"],
        },
        "measured_on": report["measured_on"],
        "licence": "Apache-2.0",
    }
    (FOLDER / "card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    print(json.dumps(card["scores"], indent=2))


if __name__ == "__main__":
    main()
