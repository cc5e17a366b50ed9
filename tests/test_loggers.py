import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger, Logger

from lmdvid import loggers
from lmdvid.loggers import WandbLogger, log_video, wandb_login


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """A machine without wandb account, settings or network, and with no terminal to ask at."""
    for name in ("API_KEY", "MODE", "BASE_URL", "DIR", "PROJECT", "IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    yield tmp_path
    wandb.teardown()


class Elsewhere(Logger):
    """A logger without a folder."""

    name = version = None

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass


def test_login_is_found_in_netrc_and_environment_only_where_it_is(clean, monkeypatch):
    assert wandb_login() is None
    netrc = clean / "netrc"
    netrc.write_text("machine example.org login user password abc\n")
    assert wandb_login() is None
    netrc.write_text(f"machine api.wandb.ai login user password {'a' * 40}\n")
    assert wandb_login() == str(netrc)
    netrc.write_text("machine\n")
    assert wandb_login() is None
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    wandb.teardown()
    assert wandb_login() == "settings"


def test_login_belongs_to_the_server_in_use(clean, monkeypatch):
    (clean / "netrc").write_text(f"machine api.wandb.ai login user password {'a' * 40}\n")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    wandb.teardown()
    assert wandb_login() is None


def test_wandb_without_key_writes_offline_and_says_so_once(clean, monkeypatch):
    said = []
    monkeypatch.setattr(loggers, "rank_zero_info", said.append)
    video = clean / "clip.mp4"
    video.write_bytes(b"an mp4 file")
    logger = WandbLogger(project="test", save_dir=str(clean / "runs"))
    logger.log_metrics({"loss": 1.0}, step=3)
    log_video([logger], "val/sample", video, step=3)
    assert logger.experiment.offline
    logger.experiment.finish()

    (line,) = said
    assert "offline" in line
    assert "wandb login" in line
    (run,) = (clean / "runs" / "wandb").glob("offline-run-*")
    (shown,) = run.glob("files/media/videos/val/*.mp4")
    assert shown.read_bytes() == b"an mp4 file"


def test_wandb_run_that_failed_is_closed_at_once(clean):
    WandbLogger(project="test", save_dir=str(clean)).finalize("failed")  # not started: nothing
    logger = WandbLogger(project="test", save_dir=str(clean))
    assert logger.experiment is wandb.run
    logger.finalize("failed")
    assert wandb.run is None


def test_wandb_is_left_alone_where_it_is_switched_off(clean, monkeypatch):
    said = []
    monkeypatch.setattr(loggers, "rank_zero_info", said.append)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = WandbLogger(project="test", save_dir=str(clean / "runs"))
    logger.log_metrics({"loss": 1.0}, step=3)
    logger.experiment.finish()
    assert not said
    assert not list((clean / "runs").rglob("*.wandb"))


def test_wandb_with_a_key_stays_online(clean, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    wandb.teardown()
    started = []
    monkeypatch.setattr(wandb, "init", lambda **settings: started.append(settings))
    _ = WandbLogger(project="test", save_dir=str(clean)).experiment
    assert "mode" not in started[0]
    assert started[0]["project"] == "test"


def test_csv_logger_gets_the_video_beside_its_metrics(tmp_path):
    video = tmp_path / "clip.mp4"
    video.write_bytes(b"an mp4 file")
    logger = CSVLogger(tmp_path, name="run")
    for _ in range(2):  # again after a resume
        log_video([Elsewhere(), logger], "val/sample", video, step=1200)
    copy = tmp_path / "run" / "version_0" / "samples" / "val_sample_0001200.mp4"
    assert copy.read_bytes() == b"an mp4 file"
    log_video([logger], "val/sample", copy, step=1200)
    assert copy.read_bytes() == b"an mp4 file"
    assert video.exists()


def test_a_missing_video_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nosuch\.mp4"):
        log_video([CSVLogger(tmp_path)], "sample", tmp_path / "nosuch.mp4", step=0)


def test_only_the_first_process_logs(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers.rank_zero_only, "rank", 1)
    log_video([CSVLogger(tmp_path)], "sample", tmp_path / "nosuch.mp4", step=0)
    assert not list(tmp_path.iterdir())
