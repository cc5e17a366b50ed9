"""Every sweep's command line is expanded as wandb does and parsed as `lightning` does."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from lmdvid.cli import build_cli

ROOT = Path(__file__).resolve().parent.parent
SWEEPS = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))


def choices(parameter: dict) -> list:
    """The values a parameter can take, or the ends of its range."""
    if "values" in parameter:
        return parameter["values"]
    if "value" in parameter:
        return [parameter["value"]]
    return [parameter["min"], parameter["max"]]


def command_lines(sweep: dict) -> Iterator[tuple[dict, list[str]]]:
    """Settings and words of one run for each value, the other parameters at their first one."""
    domain = {name: choices(parameter) for name, parameter in sweep["parameters"].items()}
    first = {name: values[0] for name, values in domain.items()}
    for name, values in domain.items():
        for value in values:
            chosen = first | {name: value}
            words = {"${env}": [], "${args}": [f"--{k}={v}" for k, v in chosen.items()]}
            yield chosen, [w for word in sweep["command"] for w in words.get(word, [word])]


def test_there_are_sweeps():
    assert SWEEPS


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_run_of_a_sweep_parses_to_its_settings(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(LightningCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(LightningCLI, "_run_subcommand", lambda self, command: None)
    for settings, words in command_lines(yaml.safe_load(path.read_text())):
        assert words[0] == "lightning"
        config = build_cli(words[1:]).config["fit"]
        for key, value in settings.items():
            assert config[key] == value, shlex.join(words)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_says_what_to_compare(path):
    sweep = yaml.safe_load(path.read_text())
    assert sweep["metric"]["goal"] in ("minimize", "maximize")
    assert sweep["metric"]["name"].startswith("val/")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_an_agent_of_wandb_makes_the_same_words(path):
    """What its agent does with a run that the server sends, by wandb's own code."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load(path.read_text())
    for settings, words in command_lines(sweep):
        sent = {"args": {name: {"value": value} for name, value in settings.items()}}
        arguments = create_sweep_command_args(sent)["args"]
        command = create_sweep_command(sweep["command"])
        made = [w for word in command for w in (arguments if word == "${args}" else [word])]
        assert made == ["${env}", *words]


def test_lists_are_compared_as_lists():
    """Or a sweep over a list could differ from its settings unseen."""
    sweep = yaml.safe_load((ROOT / "experiments/sweeps/inmodegan_pyramid.yaml").read_text())
    lines = [" ".join(words) for _, words in command_lines(sweep)]
    assert any("--model.init_args.speeds=[1, 2, 4]" in line for line in lines)
