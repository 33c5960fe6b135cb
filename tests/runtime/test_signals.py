"""Ctrl-C is acknowledged at once also while a library runs, and a second one ends such a program."""

import os
import signal
import subprocess
import sys
import time

import pytest

from kaleido_jax.runtime.signals import StopSignal
from tests.conftest import REPO

# As compiling does: half a minute in C, where no Python handler can run.
STUCK = "import hashlib; print('in', flush=True); hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**8)"
TRAINING = f"""
from kaleido_jax.runtime.signals import StopSignal
with StopSignal() as stop:
    {STUCK}
"""
OTHER = f"""
from kaleido_jax.runtime.signals import raise_on_sigterm
raise_on_sigterm()
{STUCK}
"""


@pytest.fixture
def start():
    """Starts Python source and waits until it is inside the library."""
    running = []

    def run(source):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # A shell lets its jobs in the background ignore Ctrl-C, and these tests may be one.
        heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        running.append(subprocess.Popen([sys.executable, "-c", source], cwd=REPO, text=True, **pipes, **heard))
        assert running[0].stdout.readline() == "in\n"
        time.sleep(0.2)
        return running[0]

    yield run
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_training_acknowledges_at_once_and_a_second_press_ends_it(start, first):
    process = start(TRAINING)
    process.send_signal(first)
    begin = time.monotonic()
    assert process.stderr.readline().startswith("stopping after this step, with a checkpoint; press Ctrl-C again")
    assert time.monotonic() - begin < 2 and process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(15) == 130


def test_other_verbs_say_after_a_second_that_they_will_end(start):
    process = start(OTHER)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("stopping as soon as what runs now lets go; press Ctrl-C again")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(15) == 130


def test_a_program_that_ends_at_once_says_nothing_more(start):
    process = start(OTHER.replace(STUCK, "import time; print('in', flush=True); time.sleep(60)"))
    process.send_signal(signal.SIGINT)
    assert process.wait(15) and "stopping" not in process.stderr.read()


def test_what_ends_right_after_a_signal_has_said_so_before(monkeypatch, capfd):
    write = os.write
    monkeypatch.setattr(os, "write", lambda *what: (time.sleep(0.3), write(*what))[1])  # as on a busy machine
    with StopSignal("after the images in hand") as stop:
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.asked and capfd.readouterr().err.startswith("stopping after the images in hand; press Ctrl-C again")


def test_signals_of_a_forked_process_are_not_taken_for_its_parents(start):
    source = """
import os, signal, time
from kaleido_jax.runtime.signals import StopSignal
with StopSignal() as stop:
    child = os.fork()
    if not child:
        signal.signal(signal.SIGINT, lambda *_: None)
        print("in", flush=True)
        time.sleep(1)
        time.sleep(1)
        os._exit(0)
    os.waitpid(child, 0)
    print("asked", stop.asked, flush=True)
"""
    process = start(source)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[0]), signal.SIGINT)
    assert process.stdout.readline() == "asked False\n"
    assert process.wait(15) == 0 and process.stderr.read() == ""
