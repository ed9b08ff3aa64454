"""One writer a folder: among threads, processes and hosts, after kills, and beside files that are no locks."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jdiff import locks
from jdiff.locks import NAME, LockedError, locked

HOLD = """
import sys, time
from pathlib import Path
from jdiff.locks import locked
with locked(Path(sys.argv[1]), what="training"):
    print("held", flush=True)
    time.sleep(100)
"""
COUNT = """
import sys, time
from pathlib import Path
from jdiff.locks import LockedError, locked
folder = Path(sys.argv[1])
for _ in range(20):
    while True:
        try:
            with locked(folder / "shared", what="counting"):
                number = int((folder / "count").read_text())
                time.sleep(0.001)
                (folder / "count").write_text(str(number + 1))
            break
        except LockedError:
            time.sleep(0.001)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds tmp_path / "out" until it is killed."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


@pytest.fixture
def hurried(monkeypatch):
    """Seconds become hundredths."""
    for name in ("_BEAT_SECONDS", "_STALE_SECONDS", "_SETTLE_SECONDS"):
        monkeypatch.setattr(locks, name, getattr(locks, name) / 100)


@pytest.fixture
def elsewhere(monkeypatch, hurried):
    """This process becomes one of another host, whose `flock` is not seen here, on a shared file system."""

    def go():
        monkeypatch.setattr(locks, "_boot", lambda: "another boot")
        monkeypatch.setattr(locks, "_flock", lambda file, path: False)

    return go


def test_the_second_is_refused_by_who_holds_it(tmp_path, holder):
    with pytest.raises(LockedError) as error, locked(tmp_path / "out", what="sampling"):
        pass
    said = str(error.value)
    assert said.startswith(f"{tmp_path / 'out'} is in use by process {holder.pid} on ") and "(training, since 2" in said
    assert said.endswith("wait for it, stop it, or give another --out")


def test_within_a_process_too(tmp_path):
    with locked(tmp_path, what="one") as check:
        with (
            pytest.raises(LockedError, match=rf"process {os.getpid()} on .* \(one, since"),
            locked(tmp_path, what="two"),
        ):
            pass
        check()
    with locked(tmp_path, what="three"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_after_a_kill_it_is_free_at_once(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "out" / NAME).exists()
    start = time.monotonic()
    with locked(tmp_path / "out", what="training"):
        assert time.monotonic() - start < 10  # a minute for another host's


def test_a_forked_worker_that_outlives_it_holds_nothing(tmp_path):
    """As those of a pool whose parent was killed."""
    fork = HOLD.replace('print("held"', 'child = os.fork()\n    print("held"').replace("import sys", "import os, sys")
    words = [sys.executable, "-c", fork, str(tmp_path / "out")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout.readline() == process.stdout.readline() == b"held\n"
        process.kill()
        process.wait()
        try:
            with locked(tmp_path / "out", what="training") as check:
                check()
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_never_two_of_many(tmp_path):
    (tmp_path / "count").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path)]) for _ in range(4)]
    assert [process.wait(120) for process in processes] == [0] * 4
    assert (tmp_path / "count").read_text() == "80"


def test_another_host_is_refused_while_the_record_changes(tmp_path, elsewhere):
    with locked(tmp_path, what="training"):
        elsewhere()
        with pytest.raises(LockedError, match="training"), locked(tmp_path, what="sampling"):
            pass


def test_another_host_takes_over_once_the_record_stands_still(tmp_path, elsewhere, monkeypatch, capsys):
    monkeypatch.setattr(locks._Lock, "_renew", lambda self: None)  # suspended
    with locked(tmp_path, what="training") as check:
        elsewhere()
        start = time.monotonic()
        with locked(tmp_path, what="sampling") as other:
            assert time.monotonic() - start >= locks._STALE_SECONDS
            other()
            with pytest.raises(LockedError, match=r"was taken over by process .*sampling"):
                check()
    assert "waiting for" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_of_two_hosts_that_take_over_at_once_one_has_it(tmp_path, elsewhere, monkeypatch):
    (tmp_path / NAME).write_text('{"boot": "a host that is dead"}')
    elsewhere()
    held, refused = [], []

    def take():
        try:
            with locked(tmp_path, what="one of two") as check:
                time.sleep(0.5)
                check()
                held.append(1)
        except LockedError:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 1)


@pytest.mark.parametrize("record", [b"", b"\0" * 512, b"[" * 3000, b'{"pid": []}', b"\xff", b'{"boot": "\\u001b[31m"}'])
def test_records_of_any_bytes(tmp_path, hurried, record):
    """A power loss leaves empty files and zeros."""
    (tmp_path / NAME).write_bytes(record)
    with locked(tmp_path, what="training") as check:
        check()


def test_a_folder_that_is_removed_is_noticed(tmp_path, hurried):
    folder = tmp_path / "out"
    with locked(folder, what="training") as check:
        folder.rename(tmp_path / "moved")
        with pytest.raises(LockedError, match=f"{folder} is gone, or its lock is; nothing more is written there"):
            check()


def test_what_is_no_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name, message in (
        ("file", "file is a file, and a folder is needed"),
        ("file/deeper", "file is a file, and a folder is needed"),
        ("link", "link is a link to .*gone, which does not exist"),
        ("link/deeper", "link is a link to .*gone, which does not exist"),
        ("x" * 300, "File name too long"),
    ):
        with pytest.raises(OSError, match=message), locked(tmp_path / name, what="training"):
            pass
    for kind in (os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/hostname", path)):
        kind(tmp_path / NAME)
        with pytest.raises(OSError, match=NAME), locked(tmp_path, what="training"):
            pass
        (tmp_path / NAME).rmdir() if (tmp_path / NAME).is_dir() else (tmp_path / NAME).unlink()


def test_folders_that_were_made_for_nothing_are_removed(tmp_path):
    with pytest.raises(ValueError, match="no"), locked(tmp_path / "a" / "b", what="training"):
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b", what="training"):
        (tmp_path / "a" / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]
