"""At most one process holds a lock, and none that has ended."""

import os
import signal
import subprocess
import sys
import tempfile

import pytest

from beliefedit.errors import StoreError
from beliefedit.lock import TemporaryFolder, holder, locked

HOLD = """
import sys, time
from pathlib import Path
from beliefedit.lock import locked
with locked(Path(sys.argv[1]), "a run"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / ".lock")], stdout=subprocess.PIPE,
                          text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_held_lock_names_its_holder(other, tmp_path):
    with pytest.raises(StoreError) as raised, locked(tmp_path / ".lock", "another run"):
        pytest.fail("two processes hold the lock")
    text = f"another run is at work in this folder: process {other.pid} on {os.uname().nodename} since 20"
    assert text in str(raised.value) and "choose another --out" in raised.value.hint


def test_a_killed_process_holds_no_lock(other, tmp_path):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path / ".lock", "another run"):
        assert holder(tmp_path / ".lock").startswith(f"process {os.getpid()} on ")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_another_process_leaves_is_waited_for(other, tmp_path, caplog):
    other.send_signal(signal.SIGINT)
    with locked(tmp_path / ".lock", "the stage model", wait=True):
        assert other.wait() != 0
    assert caplog.text == ""  # it was free at once


def test_waiting_is_announced(other, tmp_path, caplog, monkeypatch):
    def released(seconds):
        if len(waits) == 12:
            other.kill()
            other.wait()
        waits.append(seconds)

    waits = []
    monkeypatch.setattr("beliefedit.lock.time.sleep", released)
    with locked(tmp_path / ".lock", "the stage model", wait=True):
        assert f"waiting for the stage model by process {other.pid} on" in caplog.text


def test_a_lock_ends_with_its_block_and_is_held_once_per_process(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path / "new" / ".lock", "a run"):
        with pytest.raises(StoreError), locked(tmp_path / "new" / ".lock", "a run"):
            pytest.fail("held twice")
        raise RuntimeError
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_that_cannot_hold_a_lock_is_a_named_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write into this folder"), locked(tmp_path / "file" / ".lock", "a run"):
        pytest.fail("held")


def test_a_damaged_lock_file_names_nobody(tmp_path):
    (tmp_path / ".lock").write_text("[]")
    assert holder(tmp_path / ".lock") == holder(tmp_path / "none") == "a process that has just started or ended"


KILLED = """
import os, signal
from pathlib import Path
from beliefedit.lock import TemporaryFolder
folder = TemporaryFolder("test")
(Path(folder.name) / "weights").write_text("x")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_temporary_folders_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    subprocess.run([sys.executable, "-c", KILLED], env=os.environ | {"TMPDIR": str(tmp_path)})
    [left] = tmp_path.iterdir()
    assert (left / "weights").exists()
    (tmp_path / "beliefedit-without-a-lock").mkdir()
    with TemporaryFolder("test") as first, TemporaryFolder("test") as second:
        assert not left.exists() and os.path.exists(first) and os.path.exists(second)
    assert [path.name for path in tmp_path.iterdir()] == ["beliefedit-without-a-lock"]
