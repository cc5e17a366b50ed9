"""Every way to generate videos, in one picture and one video: what `make gallery` draws.

    python docs/gallery.py [CHECKPOINT]

Without a checkpoint it takes the newest of experiments/inmodegan_puppets.yaml. Writes
out/gallery.png (moments, from left to right) and out/gallery.mp4.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lmdvid.generate import Plan, VideoGenerator, generate, sample_codes
from lmdvid.pretrained import load_network
from lmdvid.video import to_uint8, write_image, write_video

SHOWN = 8  # moments of each in the picture
PLAN = Plan(frames=16, seed=1)


def strongest(network: VideoGenerator) -> tuple[int, float]:
    """The direction whose magnitudes vary most over videos, and how far walks go along it."""
    walks = torch.cat([sample_codes(network, PLAN, index).alpha for index in range(32)])
    direction = int(walks.flatten(0, 1).std(dim=0).argmax())
    return direction, float(walks.sum(dim=1)[:, direction].abs().quantile(0.9))


def ways(network: VideoGenerator) -> dict[str, Plan]:
    """The plans by what they show."""
    direction, reach = strongest(network)
    amplitude = round(2 * reach, 2)
    return {
        "free": PLAN,
        "one appearance, two motions": replace(PLAN, fix="appearance"),
        "one motion, two appearances": replace(PLAN, fix="motion"),
        "from one appearance to another": replace(PLAN, interpolate=6),
        "three times as long as in training": replace(PLAN, frames=48),
        f"direction {direction} alone": replace(PLAN, activate=[direction]),
        f"direction {direction} from 0 to {amplitude}": replace(
            PLAN, control=[f"{direction}=linear:0..{amplitude}"]
        ),
        f"direction {direction} as a sine": replace(
            PLAN, control=[f"{direction}=sine:{amplitude},16"]
        ),
        "typical appearances (truncation 0.5)": replace(PLAN, truncation=0.5),
    }


def label(text: str, width: int) -> Tensor:
    """A line of text, uint8 (18, width, 3)."""
    picture = Image.new("RGB", (width, 18), "white")
    ImageDraw.Draw(picture).text((3, 2), text, "black", ImageFont.load_default(12))
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(18, width, 3)


def main() -> None:
    """Draw."""
    if len(sys.argv) > 1:
        checkpoint = Path(sys.argv[1])
    else:
        found = list(Path("runs/inmodegan_puppets").glob("version_*/checkpoints/last.ckpt"))
        if not found:
            raise SystemExit(
                "no checkpoint yet: lightning fit --config experiments/inmodegan_puppets.yaml"
            )
        checkpoint = max(found, key=lambda path: path.stat().st_mtime)
    network: VideoGenerator = load_network(checkpoint)  # pyright: ignore[reportAssignmentType]
    strips, clips = [], []
    for name, plan in ways(network).items():
        indices = range(0, plan.interpolate, plan.interpolate - 1) if plan.interpolate else range(2)
        if plan.interpolate:  # a row of first frames, all the way
            videos = generate(network, plan, range(plan.interpolate))
            steps = rearrange(to_uint8(videos[:, 0]), "n h w c -> h (n w) c")
            rows = torch.nn.functional.pad(steps, (0, 0, 0, (SHOWN - len(videos)) * network.size))
            strips += [label(name, SHOWN * network.size), rows]
        videos = to_uint8(generate(network, plan, list(indices)))
        if not plan.interpolate:
            moments = torch.linspace(0, plan.frames - 1, SHOWN).round().long()
            rows = rearrange(videos[:, moments], "r t h w c -> (r h) (t w) c")
            strips += [label(name, rows.shape[1]), rows]
        # All play for as long as the longest; the shorter ones begin again.
        again = torch.arange(48) % plan.frames
        clips.append(rearrange(videos[:, again], "r t h w c -> t (r h) w c"))
    write_image("out/gallery.png", torch.cat(strips))
    write_video("out/gallery.mp4", torch.cat(clips, dim=2), 12)
    print(f"wrote out/gallery.png and out/gallery.mp4, from {checkpoint}")


if __name__ == "__main__":
    main()
