import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from m3ddm_jax.files import locking
from m3ddm_jax.files.locking import Lock, Locked

HOLD = """
import sys, time
from m3ddm_jax.files.locking import Lock
with Lock(sys.argv[1], "it"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_held_by_one_and_says_by_whom(tmp_path):
    path = tmp_path / ".lock"
    with Lock(path, "the workdir x"):
        refusal = f"the workdir x is in use by process {os.getpid()} on .*{path}"
        with pytest.raises(Locked, match=refusal), Lock(path, "the workdir x"):
            pass
        assert path.exists()
    assert not path.exists()
    with Lock(path, "again"):
        pass


def test_a_killed_process_gives_its_lock_up_at_once(tmp_path):
    path = tmp_path / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(Locked, match=f"process {holder.pid}"), Lock(path, "it"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with Lock(path, "it"):
        pass


def test_a_holder_on_another_machine_is_asked_for_a_sign_of_life(tmp_path):
    path = tmp_path / ".lock"
    path.write_text(json.dumps({"host": "far", "pid": 7, "place": "elsewhere"}))
    done = threading.Event()

    def beat():
        while not done.wait(0.02):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(Locked, match="process 7 on far"), Lock(path, "it", silence=5):
            pass
    finally:
        done.set()
        thread.join()
    with Lock(path, "it", silence=0.3):
        pass


def test_a_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "_BEAT", 0.02)
    with Lock(tmp_path / ".lock", "it"):
        before = os.stat(tmp_path / ".lock").st_mtime_ns
        deadline = time.monotonic() + 10
        while os.stat(tmp_path / ".lock").st_mtime_ns == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert os.stat(tmp_path / ".lock").st_mtime_ns > before


@pytest.mark.parametrize("content", [b"", b"\0" * 50, b"[" * 900, b"[]"])
def test_a_damaged_lock_file_of_nobody_is_taken(tmp_path, content):
    (tmp_path / ".lock").write_bytes(content)
    with Lock(tmp_path / ".lock", "it"):
        pass
