"""Every way to generate videos, in one picture and one video: what `make gallery` draws.

    python docs/gallery.py [CHECKPOINT]

Without a checkpoint it takes the newest of experiments/inmodegan_puppets.yaml. Writes
out/gallery.png (moments, from left to right) and out/gallery.mp4.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lmdvid.generate import Plan, VideoGenerator, generate, sample_codes
from lmdvid.pretrained import load_network
from lmdvid.video import to_uint8, write_image, write_video

SHOWN = 8  # moments of each in the picture
PLAN = Plan(frames=16, seed=1)


def ways(network: VideoGenerator) -> dict[str, Plan]:
    """The plans by what they show; direction 0 is the one that moves most."""
    steps = torch.cat([sample_codes(network, PLAN, index).alpha for index in range(32)])
    reach = steps.sum(dim=1)[:, 0].abs().quantile(0.9)  # of whole walks along direction 0
    far = round(4 * float(reach), 1)
    return {
        "free": PLAN,
        "one appearance, two motions": replace(PLAN, fix="appearance"),
        "one motion, two appearances": replace(PLAN, fix="motion"),
        "from one appearance to another": replace(PLAN, interpolate=SHOWN),
        "three times as long as in training": replace(PLAN, frames=48),
        "direction 0 alone": replace(PLAN, activate=[0]),
        f"direction 0 from 0 to {far}": replace(PLAN, control=[f"0=linear:0..{far}"]),
        "direction 0 as a sine": replace(PLAN, control=[f"0=sine:{far},16"]),
        "typical appearances (truncation 0.5)": replace(PLAN, truncation=0.5),
    }


def enlarged(videos: Tensor) -> Tensor:
    """Videos (B, T, 3, H, W) in [-1, 1] to uint8 (B, T, 2 H, 2 W, 3)."""
    frames = F.interpolate(videos.flatten(0, 1), scale_factor=2, mode="bicubic", antialias=True)
    return to_uint8(frames).unflatten(0, videos.shape[:2])


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
    network.order_directions()  # pyright: ignore[reportAttributeAccessIssue]
    strips, clips = [], []
    for name, plan in ways(network).items():
        if plan.interpolate:  # a row of first frames, all the way
            videos = enlarged(generate(network, plan, range(plan.interpolate)))
            rows = rearrange(videos[:, 0], "n h w c -> h (n w) c")
            videos = videos[[0, -1]]
        else:
            videos = enlarged(generate(network, plan, range(2)))
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
