"""Where a run writes: Weights & Biases without a login, and sample videos for every logger."""

import netrc
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run


def wandb_login() -> str | None:
    """Says where wandb would find its credentials, without asking for them or using the network.

    Returns:
        ``"settings"`` (environment variable or settings file), the path of the netrc file that
        names the server, or None where ``wandb.init`` would prompt for a key.
    """
    import wandb

    settings = wandb.setup().settings
    if settings.api_key or settings.identity_token_file:
        return "settings"
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        machines = netrc.netrc(path)
    except (OSError, netrc.NetrcParseError):
        return None
    server = urlsplit(settings.base_url).netloc
    # wandb.ai also answers under a newer name, for which its older keys are valid.
    names = (server, "api.wandb.ai") if server == "api.forge.coreweave.com" else (server,)
    return str(path) if any(machines.authenticators(name) for name in names) else None


class WandbLogger(LightningWandbLogger):
    """Lightning's WandbLogger for machines that may have no wandb account.

    Without an API key the run is written offline under ``save_dir`` and one line says how to send
    it later; wandb's login prompt, which would hold up an unattended run, never appears. The
    arguments are those of Lightning's logger. ``WANDB_MODE=disabled`` switches it off.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> "Run":
        """The wandb run, started on first use."""
        if self._experiment is None:
            # wandb writes to a temporary folder when the one it was given does not exist yet.
            os.makedirs(self._save_dir or ".", exist_ok=True)
            # Lightning always passes this retired setting, and wandb warns about it even when None.
            self._wandb_init.pop("anonymous", None)
            asked = self._wandb_init.get("mode") or os.environ.get("WANDB_MODE", "online")
            if asked in ("online", "shared") and not self._offline and wandb_login() is None:
                self._wandb_init["mode"] = "offline"
                rank_zero_info(
                    f"wandb: no API key, so the run stays offline in {self._save_dir or '.'}/wandb "
                    "(`wandb login` before a run, or `wandb sync` after it, sends it)"
                )
        return super().experiment

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Closes a run that failed at once.

        Left to the end of the process, wandb's closing lines would bury the error message.
        """
        super().finalize(status)
        if status != "success" and self._experiment is not None:
            self._experiment.finish(exit_code=1)
            self._experiment = None


@rank_zero_only
def log_video(loggers: Iterable[Logger], name: str, path: str | Path, step: int) -> None:
    """Gives an mp4 file to every logger that can show it.

    wandb shows it under ``name``. Loggers with a folder of their own (CSV, TensorBoard) get a copy
    at ``<log_dir>/samples/<name>_<step>.mp4``, beside the metrics; slashes in ``name`` become
    underscores there. Loggers with neither are passed over. Only the first process logs.

    Args:
        loggers: the trainer's loggers.
        name: what the video shows, such as ``val/sample``.
        path: the mp4 file; it is copied, never moved.
        step: training step the video belongs to.

    Raises:
        FileNotFoundError: where ``path`` is no file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no video to log: {path} is not a file")
    for logger in loggers:
        if isinstance(logger, LightningWandbLogger):
            logger.log_video(name, [str(path)], step=step, format=["mp4"])
        elif logger.log_dir is not None:
            copy = Path(logger.log_dir, "samples", f"{name.replace('/', '_')}_{step:07d}.mp4")
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not (copy.exists() and copy.samefile(path)):
                shutil.copyfile(path, copy)
