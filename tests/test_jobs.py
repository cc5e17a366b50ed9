"""Lists of pairs: each done once, whoever dies; what is there is kept; nothing leaves a folder."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import lightning as L
import pytest
import torch

from data_modules.pairs import Pairs
from lmdvid import cli, jobs
from lmdvid.callbacks import PredictionVideos
from lmdvid.jobs import JobError, Pair, animate_pairs, read_pairs
from lmdvid.networks.lia import Generator
from lmdvid.pretrained import save_network
from lmdvid.tasks.adversarial import PredictionError
from lmdvid.tasks.lia import LIA
from lmdvid.video import probe, write_image, write_video

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tiny network, 20 pictures, 10 clips and three files that are none."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("jobs")
    save_network(Generator(32, 16, 3, 0.02), folder / "network")
    for i in range(20):
        write_image(folder / f"face{i}.png", (torch.rand(32, 32, 3) * 255).to(torch.uint8))
    for i in range(10):
        frames = (torch.rand(2, 32, 32, 3) * 255).to(torch.uint8)
        write_video(folder / f"clip{i}.mp4", frames, 25)
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "broken.mp4").write_bytes((folder / "clip0.mp4").read_bytes()[:500])
    return folder


def write_pairs(path: Path, *rows: tuple[str, ...]) -> Path:
    columns = ("source", "driving", "output")[: len(rows[0])]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def notes(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / ".lmdvid_jobs.jsonl").read_text().splitlines()]


def summary(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / jobs.SUMMARY).open(newline="") as file:
        return {row["output"]: row for row in csv.DictReader(file)}


def start(place: Path, pairs: Path, output: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "lmdvid", "animate", "--pairs", str(pairs)]
    command += ["--checkpoint", str(place / "network"), "--output-dir", str(output), *more]
    return subprocess.Popen(
        command,
        cwd=output.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_two_invocations_one_killed_and_restarted_do_each_pair_once(place, tmp_path):
    rows = [(f"face{i}.png", f"clip{j}.mp4", f"{j}/{i}.mp4") for i in range(20) for j in range(10)]
    broken = {
        "2/0.mp4": ("broken.png", "clip2.mp4"),
        "3/7.mp4": ("face7.png", "broken.mp4"),
        "0/12.mp4": ("nosuch.png", "clip0.mp4"),
        "4/16.mp4": ("face16.png", "nosuch.mp4"),
        "9/19.mp4": ("broken.png", "broken.mp4"),
    }
    rows = [(*broken.get(name, (source, driving)), name) for source, driving, name in rows]
    pairs, out = write_pairs(place / "all.csv", *rows), tmp_path / "out"

    first, second = start(place, pairs, out), start(place, pairs, out)
    journal = out / ".lmdvid_jobs.jsonl"
    while not journal.exists() or len(journal.read_bytes().splitlines()) < 40:
        assert first.poll() is None
        time.sleep(0.005)
    os.killpg(first.pid, signal.SIGKILL)  # with its own process, in the middle of a pair
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    third = start(place, pairs, out)
    for run in (second, third):
        said, complaints = run.communicate(timeout=120)
        assert run.returncode == 1, complaints
        assert "5 failed" in said
        for name in broken:
            assert f"{name}: " in complaints

    made = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.mp4"))
    assert made == sorted({name for *_, name in rows} - broken.keys())
    assert len(made) == 195
    times = Counter(note["output"] for note in notes(out))
    assert times.keys() == {name for *_, name in rows}
    assert {*times.values()} == {1}  # nothing was done twice
    table = summary(out)
    assert {name for name, row in table.items() if row["status"] == "failed"} == broken.keys()
    assert Counter(row["status"] for row in table.values()) == {"done": 195, "failed": 5}
    assert all(float(row["seconds"]) > 0 for row in table.values() if row["status"] == "done")
    for name, (source, driving) in broken.items():
        assert any(word in table[name]["error"] for word in (source, driving))
    assert probe(out / "5/5.mp4").frames == 2
    assert list((out / ".lmdvid_parts").iterdir()) == []


def test_what_is_there_is_kept_as_long_as_nothing_changed(place, tmp_path):
    rows = [("face0.png", "clip0.mp4"), ("face1.png", "clip1.mp4"), ("late.png", "clip1.mp4")]
    (place / "late.png").unlink(missing_ok=True)
    pairs = read_pairs(write_pairs(place / "few.csv", *rows))
    names = [pair.output for pair in pairs]
    assert names == ["face0__clip0.mp4", "face1__clip1.mp4", "late__clip1.mp4"]

    def run(how=None, **options):
        made = animate_pairs(pairs, place / "network", tmp_path, how, device="cpu", **options)
        return made.done, made.kept, [*made.failed]

    assert run() == (names[:2], [], names[2:])
    assert run() == ([], names[:2], names[2:])
    assert len(notes(tmp_path)) == 3  # also the failure was left alone
    # what a kill in the middle of a note, and of an output, leaves behind
    with (tmp_path / ".lmdvid_jobs.jsonl").open("a") as journal:
        journal.write(json.dumps(dict.fromkeys(notes(tmp_path)[0], ())) + "\n")  # what is no note
        journal.write('{"output": "face0__')
    (tmp_path / names[1]).write_bytes(b"half")
    (place / "late.png").write_bytes((place / "face3.png").read_bytes())
    assert sorted(run()[0]) == names[1:]  # the damaged one, and the one whose file has come
    assert run({"magnitude": 0.5})[0] == names
    assert run({"magnitude": 0.5}) == ([], names, [])


def test_failures_are_left_alone_or_tried_again_and_nothing_of_others_is_touched(place, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "stranger.mp4").write_bytes(b"precious")
    (out / "sub").symlink_to(elsewhere)
    inputs = str(place / "face0.png"), str(place / "clip0.mp4")
    pairs = [
        Pair(str(place / "broken.png"), str(place / "clip0.mp4"), "a.mp4"),
        Pair(*inputs, "stranger.mp4"),
        Pair(*inputs, "sub/b.mp4"),
    ]
    for retry, lines in ((False, 3), (False, 3), (True, 6)):
        made = animate_pairs(pairs, place / "network", out, retry_failed=retry)
        assert "broken.png" in made.failed["a.mp4"]
        assert "move it away" in made.failed["stranger.mp4"]
        assert "leads out of" in made.failed["sub/b.mp4"]
        assert len(notes(out)) == lines
    assert (out / "stranger.mp4").read_bytes() == b"precious"
    assert list(elsewhere.iterdir()) == []


def test_a_new_failure_leaves_no_old_output_and_does_not_bar_the_next(place, tmp_path):
    """Else the folder would show what belongs to other files than the table says."""
    source, kept = place / "changing.png", place / "face4.png"
    pairs = [Pair(str(source), str(place / "clip0.mp4"), "a.mp4")]
    picture = kept.read_bytes()
    for content, status in ((picture, "done"), (b"none", "failed"), (picture, "done")):
        source.write_bytes(content)
        made = animate_pairs(pairs, place / "network", tmp_path)
        assert [*made.done, *made.failed] == ["a.mp4"]
        assert ("a.mp4" in made.done) == (status == "done")
        assert (tmp_path / "a.mp4").exists() == (status == "done")


ANOTHER = """
import json, sys
from pathlib import Path
from lmdvid.jobs import Ledger, Pair

folder = Path(sys.argv[1])
old = json.loads((folder / ".lmdvid_jobs.jsonl").read_text())
ledger, pair = Ledger(folder, old["facts"][0]), Pair(*sys.argv[2:])
with ledger.claim(pair) as mine:
    print(mine, flush=True)
    if sys.stdin.readline():
        (folder / pair.output).write_bytes(b"video")
        ledger.note(pair, "done", 1.0, size=5)
"""


@pytest.mark.parametrize("word", ["made", "killed"])
def test_of_two_invocations_that_retry_one_takes_what_the_other_makes(
    place, tmp_path, monkeypatch, word
):
    """The note of the failure that both try again says nothing of how it went this time."""
    pair = Pair(str(place / "face0.png"), str(place / "clip0.mp4"), "a.mp4")
    (tmp_path / "a.mp4").write_bytes(b"in the way")
    assert "move it away" in animate_pairs([pair], place / "network", tmp_path).failed["a.mp4"]
    (tmp_path / "a.mp4").unlink()
    other = subprocess.Popen(
        [sys.executable, "-c", ANOTHER, str(tmp_path), pair.source, pair.driving, pair.output],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == "True\n"
    looks = []

    def look(seconds: float) -> None:  # by now the pair was found to be elsewhere
        looks.append(seconds)
        if word == "killed":
            other.kill()
        elif len(looks) == 1:
            other.communicate(word)
        other.wait()

    monkeypatch.setattr(jobs.time, "sleep", look)
    made = animate_pairs([pair], place / "network", tmp_path, retry_failed=True)
    other.communicate()
    assert len(looks) == 1
    expected = {
        "made": ([], ["a.mp4"], {}),
        "killed": (["a.mp4"], [], {}),
    }
    assert (made.done, made.kept, made.failed) == expected[word]
    assert len(notes(tmp_path)) == 2


def predict(checkpoint: Path | None, table: Path, output: Path, folder: Path, **options) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PredictionVideos(str(folder))],
    )
    task = LIA(size=32, dim=16, directions=3, width=0.02, perceptual="none")
    if checkpoint is not None and not checkpoint.exists():
        trainer.strategy.connect(task)
        trainer.save_checkpoint(checkpoint)
    data = Pairs(str(table), str(output), **options)
    trainer.predict(task, data, ckpt_path=checkpoint, return_predictions=False)


def test_predict_and_animate_do_the_same_and_go_on_where_the_other_stopped(place, tmp_path, capsys):
    checkpoint, out, folder = tmp_path / "a.ckpt", tmp_path / "out", tmp_path / "unused"
    rows = [("face0.png", "clip0.mp4"), ("face1.png", "broken.mp4"), ("face2.png", "clip2.mp4")]
    few = write_pairs(place / "two.csv", *rows[:2])
    with pytest.raises(PredictionError, match=r"failed\n  face1__broken.mp4: cannot read .*broken"):
        predict(checkpoint, few, out, folder, how={"mode": "absolute"})
    assert "1 pairs animated, 0 were there already, 1 failed" in capsys.readouterr().out
    pairs = read_pairs(write_pairs(place / "three.csv", *rows))
    how = {"mode": "absolute", "magnitude": 1.0, "edit": {}}  # what is not given is the default
    made = animate_pairs(pairs, checkpoint, out, how)
    assert (made.done, made.kept) == (["face2__clip2.mp4"], ["face0__clip0.mp4"])
    assert Counter(row["status"] for row in summary(out).values()) == {"done": 2, "failed": 1}
    anew = animate_pairs(pairs[:1], checkpoint, tmp_path / "anew", how)
    first, second = (folder / "face0__clip0.mp4" for folder in (out, anew.table.parent))
    assert first.read_bytes() == second.read_bytes()
    assert not folder.exists()

    with pytest.raises(PredictionError, match="which network animates the pairs"):
        predict(None, few, out, folder)
    with pytest.raises(JobError, match="no option fitt; there are mode, fit"):
        predict(checkpoint, few, out, folder, how={"fitt": "pad"})


def test_what_was_killed_between_its_note_and_its_name_is_not_done_twice(place, tmp_path):
    pairs = [Pair(str(place / "face0.png"), str(place / "clip0.mp4"), "a.mp4")]
    animate_pairs(pairs, place / "network", tmp_path)
    content = (tmp_path / "a.mp4").read_bytes()
    same = notes(tmp_path)[0]["facts"][0]
    with closing(jobs.Ledger(tmp_path, same)) as ledger:
        (tmp_path / "a.mp4").rename(ledger.part(pairs[0]))
    made = animate_pairs(pairs, place / "network", tmp_path)
    assert (made.done, made.kept) == ([], ["a.mp4"])
    assert (tmp_path / "a.mp4").read_bytes() == content
    assert len(notes(tmp_path)) == 1
    assert list((tmp_path / ".lmdvid_parts").iterdir()) == []


DEADLY = """
import os, signal, sys, time
from lmdvid.video import workers
from lmdvid import jobs

class Deadly(jobs._Worker):
    def _animate(self, pair):
        if "clip1" in pair.driving:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "clip2" in pair.driving:
            time.sleep(60)
        super()._animate(pair)

import json
workers.answer(Deadly(json.loads(sys.argv[1])).replies)
"""


def test_pairs_that_crash_or_hang_the_process_do_not_stop_the_others(place, tmp_path, monkeypatch):
    """The real machinery, around a process that crashes at one pair and hangs at another."""
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(str(tmp_path))
    ask = jobs.workers.ask

    def ask_deadly(questions, _, arguments, **more):
        return ask(questions, "deadly", arguments, **more)

    monkeypatch.setattr(jobs.workers, "ask", ask_deadly)
    rows = [(f"face{i}.png", f"clip{i}.mp4") for i in range(4)]
    pairs = read_pairs(write_pairs(place / "deadly.csv", *rows))
    made = animate_pairs(pairs, place / "network", tmp_path / "out", jobs=2, timeout=5)
    assert made.done == ["face0__clip0.mp4", "face3__clip3.mp4"]
    assert made.failed["face1__clip1.mp4"] == "it ends the process, twice (SIGSEGV)"
    assert made.failed["face2__clip2.mp4"] == "no new frame came within 5 s"


@pytest.mark.parametrize(
    "name",
    [
        "../out.mp4",
        "/tmp/out.mp4",
        "a/../../b.mp4",
        "a\\b.mp4",
        "C:b.mp4",
        ".lmdvid_parts/b.mp4",
        "\x1b[2Jb.mp4",
    ],
)
def test_outputs_outside_the_folder_are_refused(tmp_path, name):
    pairs = write_pairs(
        tmp_path / "p.csv", ("a.png", "b.mp4", "fine.mp4"), ("a.png", "b.mp4", name)
    )
    with pytest.raises(JobError, match=r"row 3: output .* no plain name"):
        read_pairs(pairs)


def test_names_that_meet_are_numbered(tmp_path):
    rows = [("x/a.png", "b.mp4"), ("y/a.png", "b.mp4"), ("z/a.jpg", "b.gif")]
    pairs = read_pairs(write_pairs(tmp_path / "p.csv", *rows))
    assert [pair.output for pair in pairs] == ["a__b.mp4", "a__b_2.mp4", "a__b_3.mp4"]
    assert pairs[1].source == str(tmp_path / "y/a.png")
    pairs = read_pairs(write_pairs(tmp_path / "p.csv", ("\x1b[2Ja.png", "b.mp4")))
    assert pairs[0].output == "_[2Ja__b.mp4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source,output\na,b.mp4\n", r"lacks the column\(s\) driving; it has source, output"),
        ("source,driving\n", "no rows"),
        ("source,driving\na.png,\n", "row 2: it names no source, or no driving"),
        ("source,driving,output\na,b,c.mp4\na,b,./c.mp4\n", "row 3: c.mp4 is the output of an"),
        ("source,driving,output\na,b,c.exe\n", "row 2: cannot write c.exe: choose .mp4"),
        ("source,driving\n" + "a" * 200_000 + ",b\n", "field larger than field limit"),
        (b"source,driving\n\xff\xfe,b\n", "can't decode byte"),
    ],
)
def test_tables_that_make_no_sense(tmp_path, text, message):
    path = tmp_path / "p.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(JobError, match=message):
        read_pairs(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--pairs p.csv", "the following arguments are required: --output-dir"),
        ("--source a.png --driving b.mp4", "the following arguments are required: --output"),
        ("--pairs p.csv --output-dir o --source a", "--source: not with --pairs"),
        ("--source a --driving b --output c --jobs 2", "--jobs: only with --pairs"),
        ("--pairs nosuch.csv --output-dir o", "cannot read nosuch.csv: no such file or directory"),
        ("--pairs p.csv --output-dir o", "no checkpoint at x: give a converted folder"),
    ],
)
def test_command_lines_that_make_no_sense(tmp_path, monkeypatch, capsys, line, message):
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "p.csv", ("a.png", "b.mp4"))
    try:
        code = cli.main(["animate", "--checkpoint", "x", *line.split()])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_names_of_many_tongues_are_plain_and_turned_text_is_not():
    for name in ("10.00\u202fPM.mp4", "\u0645\u06cc\u200c\u062e.mp4", "\u3000全角.mp4"):
        jobs._check_output(name, "row 1")
    for name in ("a\nb.mp4", "a\u202eb.mp4", "a\u2028b.mp4", "a\x1bb.mp4"):
        with pytest.raises(JobError, match="no plain name"):
            jobs._check_output(name, "row 1")
    assert jobs._plain_text("a\nb") == "a_b"


def test_whole_numbers_and_decimals_are_the_same_option():
    one = jobs._complete({"magnitude": 1, "edit": {"3": 2}})
    assert jobs._digest(one) == jobs._digest(jobs._complete({"magnitude": 1.0, "edit": {3: 2.0}}))
