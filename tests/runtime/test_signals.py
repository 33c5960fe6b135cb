"""Ctrl-C is acknowledged at once also while a library runs, and a second one ends such a program."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from kaleido_jax.runtime.signals import StopSignal
from tests.conftest import REPO

# As compiling does: minutes in C, where no Python handler can run. "in" is said once it has worked there for a while.
LIBRARY = """
import hashlib, threading, time

def stick():
    def say():
        begin = time.process_time()
        while time.process_time() < begin + 0.05:
            time.sleep(0.01)
        print("in", flush=True)

    threading.Thread(target=say).start()
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10**9)
"""
TRAINING = f"""{LIBRARY}
from kaleido_jax.runtime.signals import StopSignal
with StopSignal() as stop:
    stick()
"""
OTHER = f"""{LIBRARY}
from kaleido_jax.runtime import signals
signals.raise_on_sigterm()
stick()
"""
AT_ONCE = """
import time
from kaleido_jax.runtime import signals
signals.PATIENCE_SEC = 30  # on a busy machine the interpreter's end can take a second
signals.raise_on_sigterm()
print("in", flush=True)
try:
    time.sleep(600)
finally:
    time.sleep(0.3)
"""


@pytest.fixture
def start():
    """Starts Python source and waits until it says that it is in."""
    running = []

    def run(source):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # A shell lets its jobs in the background ignore Ctrl-C, and these tests may be one.
        heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        running.append(subprocess.Popen([sys.executable, "-c", source], cwd=REPO, text=True, **pipes, **heard))
        assert running[0].stdout.readline() == "in\n"
        return running[0]

    yield run
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_training_acknowledges_at_once_and_a_second_press_ends_it(start, first):
    process = start(TRAINING)
    process.send_signal(first)
    assert process.stderr.readline().startswith("stopping after this step, with a checkpoint; press Ctrl-C again")
    assert process.poll() is None  # the library still works, for minutes
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130


def test_other_verbs_say_after_a_second_that_they_will_end(start):
    process = start(OTHER)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("stopping as soon as what runs now lets go; press Ctrl-C again")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130


def test_a_program_that_ends_at_once_says_nothing_more(start):
    process = start(AT_ONCE)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) and "stopping" not in process.stderr.read()


def test_what_ends_right_after_a_signal_has_said_so_before(monkeypatch, capfd):
    write = os.write
    monkeypatch.setattr(os, "write", lambda *what: (time.sleep(1.5), write(*what))[1])  # as on a busy machine
    with StopSignal("after the images in hand") as stop:
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.asked and capfd.readouterr().err.startswith("stopping after the images in hand; press Ctrl-C again")


def test_a_second_sigterm_while_a_program_ends_does_not_change_its_code():
    """As launchers send it to all when the first has ended."""
    source = "import atexit, os, signal, sys, kaleido_jax.main as m, kaleido_jax.errors as e\n"
    source += "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
    source += "def stopped(argv):\n    raise {}\nm.main = stopped\nm.run()"
    for error, code in (("e.Terminated", 75), ("e.UserError('x')", 2), ("e.MissingProcess('x')", 4)):
        done = subprocess.run([sys.executable, "-c", source.format(error)], cwd=REPO, capture_output=True, text=True)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr


def test_in_another_thread_signals_stay_as_they_are():
    """There Python allows no handlers: a notebook's or a server's thread trains and annotates without."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def stoppable():
        with StopSignal() as stop:
            during = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        return stop.asked, during, stop.as_error()

    with ThreadPoolExecutor() as pool:
        asked, during, _ = pool.submit(stoppable).result()
    assert not asked and during == before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


def test_signals_of_a_forked_process_are_not_taken_for_its_parents(start):
    source = """
import os, signal, time
from kaleido_jax.runtime.signals import StopSignal
with StopSignal() as stop:
    child = os.fork()
    if not child:
        heard = []
        signal.signal(signal.SIGINT, lambda *_: heard.append(1))
        print(f"in\\n{os.getpid()}", flush=True)
        for _ in range(6000):
            heard or time.sleep(0.01)
        os._exit(0 if heard else 1)
    print("heard", not os.waitpid(child, 0)[1], "asked", stop.asked, flush=True)
"""
    process = start(source)
    os.kill(int(process.stdout.readline()), signal.SIGINT)
    assert process.stdout.readline() == "heard True asked False\n"
    assert process.wait(60) == 0 and process.stderr.read() == ""
