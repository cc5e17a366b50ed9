"""Networks on disk: folders, training checkpoints, the authors' files, and files to refuse."""

import argparse
import json

import pytest
import torch
from test_lia import original

from lmdvid.networks import WeightsError
from lmdvid.networks.lia import Generator
from lmdvid.pretrained import convert, load_network, save_network


@pytest.fixture
def network() -> Generator:
    return Generator(32, 16, 3, 0.02)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_folder_keeps_network_and_config(tmp_path, network):
    save_network(network, tmp_path / "saved")
    loaded = load_network(tmp_path / "saved")
    assert isinstance(loaded, Generator)
    assert loaded.config == network.config
    assert same(loaded, network)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_the_authors_file_converts(tmp_path):
    """With everything a training file holds: both networks, optimiser states, a Namespace."""
    optimiser = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
    content = {
        "gen": {f"module.{k}": v for k, v in original("gen").items()},
        "dis": original("dis"),
        "g_optim": optimiser,
        "args": argparse.Namespace(size=64),
    }
    torch.save(content, tmp_path / "000001.pt")
    report = convert(tmp_path / "000001.pt", tmp_path / "lia")
    assert "size=64" in report
    assert "align_corners=False" in report
    assert "entry of 'dis'" in report
    assert "entry of 'g_optim'" in report
    loaded = load_network(tmp_path / "lia")
    assert f"{sum(p.numel() for p in loaded.parameters()):,} parameters" in report
    basis = torch.linalg.qr(original("gen")["dec.direction.weight"] + 1e-8).Q.T
    torch.testing.assert_close(loaded.navigator.basis(), basis)


def test_a_training_checkpoint_loads_its_average(tmp_path, network):
    average = Generator(**network.config)
    state = {f"generator.{k}": v for k, v in network.state_dict().items()}
    state |= {f"generator_ema.network.{k}": v for k, v in average.state_dict().items()}
    content = {
        "state_dict": state,
        "global_step": 7,
        "lmdvid_generator": {"network": "lmdvid.networks.lia.Generator", "config": network.config},
    }
    torch.save(content, tmp_path / "last.ckpt")
    assert same(load_network(tmp_path / "last.ckpt"), average)
    report = convert(tmp_path / "last.ckpt", tmp_path / "exported")
    assert "step 7" in report
    assert same(load_network(tmp_path / "exported"), average)


class Payload:
    """What a malicious file would run when it is opened."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


def refused(tmp_path, name: str):
    path = tmp_path / name
    if name == "code.pt":
        torch.save({"gen": Payload(tmp_path / "ran")}, path)
    elif name == "text.ckpt":
        path.write_text("not a checkpoint")
    elif name == "empty.ckpt":
        path.write_bytes(b"")
    elif name == "cut.ckpt":
        torch.save({"weights": torch.zeros(100)}, path)
        path.write_bytes(path.read_bytes()[:200])
    elif name == "half.safetensors":
        path.write_bytes(b"x")
    elif name == "list.pt":
        torch.save([1, 2], path)
    elif name == "other.ckpt":
        torch.save({"weights": torch.zeros(2)}, path)
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("code.pt", "could run code"),
        ("text.ckpt", "is not a checkpoint"),
        ("cut.ckpt", "cut off"),
        ("half.safetensors", "give its folder"),
        ("empty.ckpt", "is not a checkpoint"),
        ("list.pt", "holds a list"),
        ("other.ckpt", "lmdvid convert"),
        ("missing.ckpt", "no checkpoint at"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_a_sentence(tmp_path, name, message):
    path = refused(tmp_path, name)
    with pytest.raises(WeightsError, match=message):
        load_network(path)
    assert not (tmp_path / "ran").exists()


def test_unknown_files_are_not_converted(tmp_path):
    torch.save({"model": {"layer.weight": torch.zeros(2)}}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"none of the systems.*lia.*layer\.weight"):
        convert(tmp_path / "x.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "os.system"}, "only networks of lmdvid.networks"),
        ({"network": "lmdvid.networks.lia.torch"}, "does not have"),
        ({"network": "lmdvid.networks.lia.Source"}, "does not have"),
        ({"network": "lmdvid.networks.lia.Nothing"}, "does not have"),
        ({"config": {"size": 32, "dims": 3}}, "does not fit this version"),
        ({"config": {"size": 64, "dim": 16, "directions": 3, "width": 0.02}}, "does not fit"),
        ({"config": {"size": 33}}, "power of two"),
    ],
)
def test_a_folder_cannot_name_arbitrary_code(tmp_path, network, change, message):
    save_network(network, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(WeightsError, match=message):
        load_network(tmp_path)


def test_a_damaged_folder_says_what_is_missing(tmp_path, network):
    save_network(network, tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(WeightsError, match="damaged"):
        load_network(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no model\.safetensors"):
        load_network(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"no config\.json"):
        load_network(tmp_path)
