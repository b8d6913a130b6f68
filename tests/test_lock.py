"""One writer a directory: real processes, killed and alive; other machines by what they left."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmjax import lock
from mmjax.error import UserError
from mmjax.lock import LOCK, Owner, held, this_process

ROOT = Path(__file__).parent.parent
HOLDER = """
import sys
from pathlib import Path
from mmjax.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def start(file: Path) -> subprocess.Popen:
    """A process that holds the lock until its stdin ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n", process.stderr.read()
    return process


def leave(file: Path, owner: Owner, age: float = 0.0) -> None:
    """A lock as another process would have left it, `age` seconds ago."""
    file.write_text(json.dumps(dataclasses.asdict(owner)))
    os.utime(file, (time.time() - age, time.time() - age))


def taken(file: Path) -> None:
    """The lock can be taken, is this process's then, and is gone in the end."""
    with held(file) as check:
        check()
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert not file.exists()


def test_the_second_is_refused_and_the_first_not_disturbed(tmp_path):
    file = tmp_path / LOCK
    process = start(file)
    before = file.read_bytes()
    with pytest.raises(UserError) as caught, held(file):
        pass
    said = str(caught.value)
    for words in (str(tmp_path), f"process {process.pid} on ", f"kill {process.pid}", "another"):
        assert words in said
    assert file.read_bytes() == before
    process.communicate("")
    assert process.returncode == 0 and not file.exists()
    taken(file)


def test_a_killed_process_holds_nothing(tmp_path):
    file = tmp_path / LOCK
    with start(file) as process:
        process.kill()
        deadline = time.monotonic() + 10
        while lock.started(process.pid) is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock.started(process.pid) is None  # not waited for yet, a zombie
    assert file.exists()
    taken(file)


def test_a_number_given_again_to_another_process_is_not_the_owner(tmp_path):
    me = this_process()
    leave(tmp_path / LOCK, dataclasses.replace(me, start=str(int(me.start) - 1)))
    taken(tmp_path / LOCK)
    leave(tmp_path / LOCK, me)
    with pytest.raises(UserError, match=f"process {me.pid} on "), held(tmp_path / LOCK):
        pass


@pytest.mark.parametrize("here", [True, False])
def test_of_another_machine_the_last_sign_of_life_decides(tmp_path, here):
    """Also of another container of this machine, where the same host name means nothing."""
    mine = this_process()
    other = dataclasses.replace(mine, kernel="other", host=mine.host if here else "elsewhere")
    leave(tmp_path / LOCK, other, age=lock.STALE - 60)
    wanted = rf"on {other.host}, .*last sign of life 2[34]\d s ago; .*remove .*{LOCK} or wait"
    with pytest.raises(UserError, match=wanted), held(tmp_path / LOCK):
        pass
    leave(tmp_path / LOCK, other, age=lock.STALE + 60)
    taken(tmp_path / LOCK)


@pytest.mark.parametrize("content", [b"", b'{"host": "a', b"\xff\xfe", b"[]", b'{"host": 1}'])
def test_a_lock_cut_by_a_full_disk_holds_nothing(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content)
    taken(tmp_path / LOCK)


def test_the_owner_gives_signs_of_life_and_sees_when_it_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    file = tmp_path / LOCK
    with held(file) as check:
        os.utime(file, (1, 1))
        deadline = time.monotonic() + 10
        while file.stat().st_mtime < 1000 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert file.stat().st_mtime > 1000
        check()
        other = dataclasses.replace(this_process(), host="elsewhere", kernel="other")
        leave(file, other)
        with pytest.raises(UserError, match="no longer this process's"):
            check()
        time.sleep(0.1)
        file.unlink()  # the other came to its end: what it left is not ours to write over
        with pytest.raises(UserError, match="no longer this process's"):
            check()
        leave(file, other)
    assert file.exists()  # not ours to remove


def test_missing_directories_are_made_and_empty_ones_removed(tmp_path):
    with held(tmp_path / "a" / "b" / LOCK):
        assert (tmp_path / "a" / "b" / LOCK).exists()
    assert os.listdir(tmp_path) == []
    with held(tmp_path / "a" / "b" / LOCK):
        (tmp_path / "a" / "b" / "kept").touch()
    assert os.listdir(tmp_path / "a" / "b") == ["kept"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), held(tmp_path / "file" / "x" / LOCK):
        pass


RACE = """
import sys, time
from pathlib import Path
from mmjax.error import UserError
from mmjax.lock import held
file, log = Path(sys.argv[1]), Path(sys.argv[2])
won = 0
until = time.monotonic() + 1.5
while time.monotonic() < until:
    try:
        with held(file):
            with log.open("x"):
                won += 1
            log.unlink()
    except UserError:
        pass
print(won)
"""


def test_never_two_at_once(tmp_path):
    """Three processes take and leave it all the time; `open("x")` would fail for a second one."""
    argv = [sys.executable, "-c", RACE, str(tmp_path / LOCK), str(tmp_path / "log")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    processes = [subprocess.Popen(argv, **pipes) for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert int(out) > 0
    assert os.listdir(tmp_path) == []
