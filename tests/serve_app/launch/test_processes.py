"""All descendants of a process are found, and none is left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from serve_app.launch.processes import find_descendants

ROOT = Path(__file__).parents[3]


def test_descendants_are_found_to_the_last_generation() -> None:
    code = "import subprocess, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        try:
            assert {child.pid, grandchild} <= set(find_descendants(os.getpid()))
        finally:
            os.kill(grandchild, signal.SIGKILL)
            child.kill()


def test_an_orphan_in_a_session_of_its_own_is_killed() -> None:
    """What a daemon does to hide: fork twice, and leave the session."""
    script = """
import subprocess, sys
from serve_app.launch.processes import adopt_orphans, sweep
adopt_orphans()
code = "import subprocess as s; print(s.Popen(['sleep', '60'], start_new_session=True, stdout=s.DEVNULL).pid)"
print(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True).stdout, flush=True)
sweep(3.0)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not Path(f"/proc/{int(found.stdout)}").exists()
