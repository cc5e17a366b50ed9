"""Fixtures of the fault tests: clips, and a process that forks trainings."""

from pathlib import Path

import pytest
from runs import Zygote, experiment, prepare

from data_modules.puppets import Puppets


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> str:
    """A folder with four clips for training and two held out."""
    folder = tmp_path_factory.mktemp("puppets")
    puppets = Puppets(str(folder), size=32, train_identities=4, test_identities=2, clip_frames=6)
    puppets.prepare_data()
    return puppets.root


@pytest.fixture(scope="session")
def zygote():
    started = Zygote()
    yield started
    started.close()


@pytest.fixture(scope="session")
def undisturbed(zygote, clips, tmp_path_factory):
    """Makes, once for each kind, the folder of a run that nothing disturbed."""
    from runs import Run, together

    made: dict[tuple, Path] = {}

    def make(system: str, workers: int = 0, ranks: int = 1) -> Path:
        kind = (system, ranks)  # workers change nothing, which other tests hold
        if kind not in made:
            folder = tmp_path_factory.mktemp("whole") / "run"
            prepare(folder, experiment(system, clips, 0, ranks))
            runs = together(zygote, folder, ranks) if ranks > 1 else [Run(zygote, folder)]
            assert [run.wait() for run in runs] == [0] * ranks, runs[0].said
            made[kind] = folder
        return made[kind]

    return make
