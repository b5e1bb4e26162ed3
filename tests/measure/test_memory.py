import pathlib
import sys

import numpy as np

from m3ddm_jax.measure import memory

MIB = 2**20
ROOT = pathlib.Path(__file__).resolve().parents[2]


def child(code: str) -> memory.ChildRun:
    return memory.run_child([sys.executable, "-c", code], cwd=ROOT)


def test_peak_of_this_process_stays_when_memory_is_given_back():
    code = (
        "from m3ddm_jax.measure.memory import peak_rss; a = peak_rss(); bytearray(b'1') * (64 * 2**20); b = peak_rss()"
    )
    run = child(f"{code}; import sys; sys.exit(str((b - a) // 2**20))")
    assert 60 <= int(run.stderr) <= 80


def test_peak_of_a_child_is_its_own_and_includes_what_it_freed():
    ballast = np.ones(40 * MIB // 8 * 5)  # 200 MiB in the parent must not be counted
    held = "import time; x = bytearray(b'1') * (64 * 2**20); del x; time.sleep(0.3)"
    small, large = child("import time; time.sleep(0.3)"), child(held)
    assert ballast.nbytes == 200 * MIB and small.peak_bytes < 100 * MIB
    assert 60 * MIB < large.peak_bytes - small.peak_bytes < 80 * MIB


def test_exit_status_and_error_text_come_back():
    run = child("import sys; print('x' * 10**6); sys.exit('what went wrong')")
    assert run.returncode == 1 and run.stderr == "what went wrong\n" and run.seconds > 0
