"""What is known about other processes, with and without ``/proc``."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from datapatterns.embedded.processes import RunningProcess, listed_processes, process_table

Look = Callable[[], list[RunningProcess]]

pytestmark = pytest.mark.skipif(not Path("/bin/ps").exists(), reason="needs ps")


@pytest.mark.parametrize("look", [process_table, listed_processes])
def test_a_child_is_seen_with_its_parent_and_its_arguments(look: Look) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "input()", "an-argument"], stdin=subprocess.PIPE
    ) as child:
        seen = {process.pid: process for process in look()}
        child.communicate(b"\n")

    assert seen[child.pid].parent == os.getpid()
    assert "an-argument" in seen[child.pid].command


@pytest.mark.parametrize("look", [process_table, listed_processes])
def test_what_has_ended_and_waits_to_be_reaped_is_not_running(look: Look) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

        assert child.pid not in {process.pid for process in look()}
