"""Progress: stages, pieces and time left, as lines where there is no terminal, and as a bar."""

import io

import pytest
from rich.console import Console

from mmjax import watch as watch_module
from mmjax.watch import Watch, pieces


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by what the test says."""
    now = [100.0]
    monkeypatch.setattr(watch_module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_tells_the_stage_at_once_and_how_far_every_few_seconds(clock, capsys):
    with Watch("evaluate", 2) as watch:
        watch.stage("likelihood")
        watch.stage("caption")
        done = []
        for piece in pieces(range(5), "documents", 64, 300):
            done.append(piece)
            clock[0] += 6.0
    assert done == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err.splitlines() == [
        "evaluate 1/2: likelihood",
        "evaluate 2/2: caption",
        "evaluate 2/2: caption  128/300 documents  0:16 left",
        "evaluate 2/2: caption  256/300 documents  0:04 left",
    ]


def test_work_of_a_few_seconds_says_nothing_in_a_log(clock, capsys):
    with Watch("sample"):
        for _ in pieces(range(3), "prompts"):
            clock[0] += 2.0
    out, err = capsys.readouterr()
    assert (out, err) == ("", "")


def test_nobody_needs_to_watch_and_a_watch_ends(clock, capsys):
    with pytest.raises(ZeroDivisionError), Watch("sample"):
        assert watch_module._told.get() is not None
        1 / 0  # noqa: B018
    assert watch_module._told.get() is None
    for _ in pieces(range(3), "prompts"):
        clock[0] += 20.0
    assert list(pieces([], "prompts")) == []
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar_with_the_stage(monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(watch_module, "Console", lambda file: terminal)
    with Watch("evaluate", 1) as watch:
        watch.stage("drawing")
        for _ in pieces(range(2), "prompts", 64, 100):
            watch._bar.refresh()
    shown = screen.getvalue()
    assert "evaluate 1/1: drawing" in shown and "64/100" in shown and "prompts" in shown
