"""What a person sees: a bar in a terminal, another in a notebook, lines elsewhere."""

import contextlib
import io
import sys
import types

import numpy as np
import pytest

import llmasos_xla as lm
from llmasos_xla.training.report import Bar, Lines, Notebook, Quiet, reporter

X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)
SHOW_CURSOR = "\x1b[?25h"


def fit(**options):
    model = lm.Sequential([lm.layers.Dense(2, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy", ["accuracy"])
    return model.fit(X, Y, batch_size=4, **options)


class Screen(io.StringIO):
    """A terminal, and what it was sent."""

    def isatty(self):
        return True


@pytest.fixture
def small(monkeypatch):
    """The size of a terminal."""
    for name, value in (("COLUMNS", "60"), ("LINES", "10"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)


@pytest.fixture
def notebook(monkeypatch):
    """An IPython with a kernel; the HTML it was given."""
    drawn = []

    def display(value, display_id):
        drawn.append(value)
        return types.SimpleNamespace(update=drawn.append)

    display_module = types.SimpleNamespace(HTML=str, display=display)
    module = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=None), display=display_module)
    monkeypatch.setitem(sys.modules, "IPython", module)
    return drawn


@pytest.mark.usefixtures("small")
def test_a_terminal_keeps_a_whole_line_of_every_epoch():
    with contextlib.redirect_stdout(Screen()) as screen:
        fit(epochs=25, validation_data=(X, Y))
    out = screen.getvalue()
    assert "compiled train step in" in out
    assert "compiling" in out
    for epoch in range(1, 26):
        (line,) = [
            part for part in out.replace("\r", "\n").split("\n") if f"Epoch {epoch}/25" in part and "val_" in part
        ]
        assert "val_accuracy 0." in line or "val_accuracy 1." in line
    assert SHOW_CURSOR in out


@pytest.mark.usefixtures("small")
def test_a_terminal_is_given_back_when_a_fit_fails():
    def broken(event):
        raise OSError("disk full")

    with contextlib.redirect_stdout(Screen()) as screen, pytest.raises(OSError, match="disk full"):
        fit(callbacks=[broken])
    assert SHOW_CURSOR in screen.getvalue()


@pytest.mark.usefixtures("small")
def test_a_terminal_is_given_back_when_compiling_fails(monkeypatch):
    def fails(*arguments, **options):
        raise MemoryError("no room")

    monkeypatch.setattr("llmasos_xla.training.placed.compile", fails)
    with contextlib.redirect_stdout(Screen()) as screen, pytest.raises(MemoryError):
        fit()
    assert SHOW_CURSOR in screen.getvalue()


@pytest.mark.usefixtures("small")
def test_names_are_not_markup():
    with contextlib.redirect_stdout(Screen()) as screen:
        bar = Bar()
        bar.begin(0, 1, 3)
        bar.epoch(0)
        bar.step(1, 2.0, {"top[/5]": 1.0})
        bar.note("saved to [best].h5")
        bar.epoch_end(0, 1.0, 2.0, {"top[/5]": 1.0})
        bar.end()
    out = screen.getvalue()
    assert "saved to [best].h5" in out
    assert "top[/5] 1.0000" in out


def test_a_notebook_redraws_a_bar_and_keeps_lines(notebook, capsys):
    fit(epochs=2, steps_per_dispatch=1)
    assert any("<progress></progress> <code>compiling train step" in html for html in notebook)
    assert any('max="5"' in html and "Epoch 2/2" in html for html in notebook)
    assert notebook[-1] == ""
    assert "Epoch 2/2" in capsys.readouterr().out


def test_which_reporter(notebook, monkeypatch):
    assert isinstance(reporter(1), Notebook)
    assert type(reporter(0)) is Quiet
    monkeypatch.delitem(sys.modules, "IPython")
    assert type(reporter(1)) is Lines
