"""Files a run leaves: whole at every moment, and readable after a kill."""

import json
import math
import os
import stat
import threading
from pathlib import Path

import pytest

from mmjax.error import UserError
from mmjax.log import (
    METRICS,
    Bar,
    MetricsFile,
    naming,
    read_json,
    read_metrics,
    rewind,
    tidy,
    write_json,
)


def test_write_json_is_what_json_reads(tmp_path):
    value = {"a": [1, 2.5, None, "ä\u2028"], "b": {"c": True}}
    write_json(tmp_path / "new" / "deep" / "x.json", value)
    assert json.loads((tmp_path / "new" / "deep" / "x.json").read_text()) == value
    assert [p.name for p in (tmp_path / "new" / "deep").iterdir()] == ["x.json"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    path, done, torn, seen = tmp_path / "x.json", threading.Event(), [], set()
    write_json(path, [0] * 5000)

    def read():
        while not done.is_set():
            try:
                seen.add(json.loads(path.read_text())[0])
            except ValueError as error:
                torn.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(100):
        write_json(path, [i] * 5000)
    done.set()
    reader.join()
    assert not torn and len(seen) > 1


def test_what_is_no_json_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    for bad in ({"new": 2, "x": object()}, {"new": {1, 2}}):
        with pytest.raises(TypeError):
            write_json(path, bad)
    assert json.loads(path.read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_failed_replacement_leaves_no_draft(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(OSError):
        write_json(tmp_path / "x.json", {})
    assert os.listdir(tmp_path) == ["x.json"]


def test_files_have_the_rights_of_any_other_file(tmp_path):
    write_json(tmp_path / "x.json", {})
    (tmp_path / "plain").touch()
    modes = [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("x.json", "plain")]
    assert modes[0] == modes[1]


ROWS = [{"step": s, "loss": 1 / s} for s in (5, 10, 15)]


@pytest.fixture
def workdir(tmp_path):
    file = MetricsFile(tmp_path)
    for row in ROWS:
        file.write(row)
    file.close()
    return tmp_path


def test_metrics_are_there_as_soon_as_they_are_written(tmp_path):
    file = MetricsFile(tmp_path)
    file.write(ROWS[0])
    assert read_metrics(tmp_path) == ROWS[:1]
    file.close()


@pytest.mark.parametrize("torn", ["{", '{"step": 20, "lo', '{"step": 20, "loss": 1', '"step'])
def test_a_torn_last_line_is_left_out(workdir, torn):
    assert read_metrics(workdir) == ROWS
    with (workdir / METRICS).open("a") as file:
        file.write(torn)
    assert read_metrics(workdir) == ROWS
    rewind(workdir, 15)
    file = MetricsFile(workdir)
    file.write({"step": 20})
    file.close()
    assert read_metrics(workdir) == [*ROWS, {"step": 20}]


@pytest.mark.parametrize("bad", [b"{", b"\xff\xfe{}", b"[1]", b'{"loss": 1}', b"null", b"[" * 9999])
def test_a_bad_line_costs_no_row_behind_it(workdir, bad):
    whole = (workdir / METRICS).read_bytes().split(b"\n")
    (workdir / METRICS).write_bytes(b"\n".join([whole[0], bad, *whole[1:]]))
    assert read_metrics(workdir) == ROWS
    rewind(workdir, 10)
    assert read_metrics(workdir) == ROWS[:2]
    assert (workdir / METRICS).read_bytes().split(b"\n")[1] == bad  # not ours to remove


def test_what_a_full_disk_refuses_names_the_file(tmp_path):
    (tmp_path / METRICS).symlink_to("/dev/full")
    file = MetricsFile(tmp_path)
    with pytest.raises(OSError, match="No space left") as caught:
        file.write(ROWS[0])
    assert caught.value.filename == str(tmp_path / METRICS)
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        file.close()
    with pytest.raises(OSError, match="No space left") as caught, naming(tmp_path / "x"):
        Path("/dev/full").write_text("y")
    assert caught.value.filename == str(tmp_path / "x")


DAMAGE = {"cut": '{"a": [1', "no object": "[1]", "not UTF-8": b"\xff", "deep": "[" * 99999}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_json_is_named_with_the_remedy(tmp_path, kind):
    text, file = DAMAGE[kind], tmp_path / "x.json"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError, match=r"x.json is damaged \(.*\); do this"):
        read_json(file, "do this")
    with pytest.raises(UserError, match=r"none.json cannot be read: No such file .*; do this"):
        read_json(tmp_path / "none.json", "do this")


def test_no_metrics_yet(tmp_path):
    assert read_metrics(tmp_path) == []
    rewind(tmp_path, 3)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (4, 0), (5, 1), (12, 2), (99, 3)])
def test_rewind_drops_what_comes_after_the_step(workdir, step, kept):
    rewind(workdir, step)
    assert read_metrics(workdir) == ROWS[:kept]
    assert os.listdir(workdir) == [METRICS]


def test_tidy_takes_roots_of_mean_squares():
    got = tidy({"loss": 2, "text/logit_squared": 9.0, "text/log_z_squared": math.nan})
    assert got["text/logit_norm"] == 3 and got["loss"] == 2.0 and math.isnan(got["text/log_z"])
    assert set(got) == {"loss", "text/logit_norm", "text/log_z"}


def test_without_a_terminal_the_bar_is_a_line_a_logged_step(capsys):
    with Bar(10) as bar:
        bar.step(3)
        bar.note({"step": 3, "loss": 1.25, "tokens_per_s": 4321.0}, left=75)
        bar.say("[one] line " + "x" * 200)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "step 3/10  loss 1.250  4,321 tokens/s  1:15 left", "[one] line " + "x" * 200
    ]  # fmt: skip
