"""The engine itself: what keeps it from its work for a while does not end it."""

import errno
import json
import logging
import sqlite3

import pytest
from runtime_jobs import wait_until

from llmasos_xla.runtime import engine, service
from llmasos_xla.runtime.launchers import holding, keeper
from llmasos_xla.runtime.store import Store


class Supervisor:
    """Fails at its first looks, one after the other by each of these errors."""

    def __init__(self, errors, told, log):
        self.errors, self.told, self.log, self.idle = errors, told, log, False
        self.log.append("made")

    def tick(self, *, planning):
        if self.errors:
            raise self.errors.pop(0)
        self.log.append("looked")
        self.told.append(15)

    def close(self):
        self.log.append("closed")
        self.idle = True


def test_a_full_disk_does_not_end_it(home, monkeypatch, caplog):
    """It begins anew, as an engine would that comes after one that was killed, and tells a trouble once."""
    monkeypatch.setattr(engine, "_TROUBLE_SECONDS", 0.0)
    full = OSError(errno.ENOSPC, "No space left on device")
    errors, told, log = [full, full, sqlite3.OperationalError("disk I/O error")], [], []
    store = Store(home.store)
    with caplog.at_level(logging.ERROR, "llmasos_xla.runtime"):
        engine._serve(store, lambda: Supervisor(errors, told, log), told)
    assert log == ["made"] * 4 + ["looked", "closed"]
    assert [str(record.exc_info[1]) for record in caplog.records] == [str(full), "disk I/O error"]
    store.close()


def test_it_ends_where_its_folder_is_gone(home, engine):
    """By whose lock it would be found: it would run on for ever, on files that nobody sees."""
    found = engine("--no-page")
    away = home.path.rename(home.path.with_name("elsewhere"))
    try:
        wait_until(lambda: not keeper.lives(found), seconds=20)
    finally:
        away.rename(home.path)
    assert "the queue's folder is gone" in home.log.read_text()


def test_how_a_job_ended_is_kept_until_there_is_room_for_it(tmp_path, monkeypatch):
    write, left = keeper.write, [errno.ENOSPC, errno.EDQUOT]

    def full(path, value):
        if left:
            raise OSError(left.pop(), "no room")
        write(path, value)

    monkeypatch.setattr(keeper, "write", full)
    monkeypatch.setattr(keeper, "_ENGINE_SECONDS", 0.0)
    keeper._leave_word(tmp_path / "exit", {"status": 0})
    assert json.loads((tmp_path / "exit").read_text()) == {"status": 0}


def test_a_keeper_goes_on_where_it_cannot_tell_what_its_job_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(holding, "held_bytes", lambda pid: 1 << 30)
    monkeypatch.setattr(holding, "_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(holding, "_SHARE", 1e9)
    looks = holding.Holding(tmp_path / "later" / "token")
    looks.look()
    (tmp_path / "later").mkdir()
    looks.look()
    assert holding.read_held(tmp_path / "later" / "token") == (1 << 30, 1 << 30)


def test_a_fit_goes_on_where_the_queue_cannot_be_told(tmp_path, capsys):
    from llmasos_xla.training.telling import _Teller

    teller = _Teller(str(tmp_path / "gone" / "token"), saves=True)
    teller.begin(0, 2, 8)
    teller.step(1, 1.0, {"loss": 1.0})
    teller.begin(1, 2, 8)
    assert capsys.readouterr().err.count("the queue cannot be told how far the fit is: [Errno 2]") == 1


def test_elsewhere_than_on_linux_it_says_so(home, monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(RuntimeError, match="up: the engine needs Linux, .* this is darwin"):
        service.up(home)
