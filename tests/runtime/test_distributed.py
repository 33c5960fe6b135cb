"""Several processes: which one this is, barriers that name who is missing, a start that fails in one line."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from kaleido_jax.errors import UserError
from kaleido_jax.runtime import distributed
from kaleido_jax.runtime.distributed import Place

REPO = Path(__file__).parent.parent.parent
LAUNCHERS = ("SLURM_", "OMPI_", "KUBERNETES_", "JOB_COMPLETION", "JAX_COORDINATOR", "JAX_NUM_PROC", "JAX_PROCESS_ID")
LAUNCHERS += ("CUDA_VISIBLE_DEVICES", "JAX_LOCAL_DEVICE_IDS", "TPU_")
STEP = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
PORT = 65535 - 2**12 + 1 + 77  # JAX's for this job id
SHELL = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
OMPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "16",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "8",
}


@pytest.fixture
def place(monkeypatch):
    """A function: variables of a launcher and flags -> this process's place."""
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)
    monkeypatch.setattr(distributed, "TPU_DEVICES", ())

    def find(environment=(), coordinator=None, num_processes=None, process_id=None):
        for name, value in dict(environment).items():
            monkeypatch.setenv(name, value)
        return distributed._place(coordinator, num_processes, process_id)

    return find


ALONE = {
    "nothing": {},
    "a shell of salloc or sbatch": SHELL,
    "an interactive step of a job with more tasks": SHELL | STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"},
    "srun --pty with one task": STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"},
    "mpirun -n 1": OMPI | {"OMPI_COMM_WORLD_SIZE": "1"},
    "a notebook in a pod": {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    "told to run alone": STEP | {"JAX_NUM_PROCESSES": "1"},
}


@pytest.mark.parametrize("environment", ALONE.values(), ids=ALONE)
def test_a_process_that_is_alone_joins_nothing(environment, place):
    assert place(environment) is None


def test_one_task_of_a_node_takes_all_its_gpus_and_one_of_many_its_own(place):
    node = f"node07:{PORT}"
    assert place(STEP) == Place(coordinator=node, count=2, index=1, devices=None)
    eight = STEP | {"SLURM_STEP_NUM_TASKS": "16", "SLURM_NTASKS": "16", "SLURM_PROCID": "11", "SLURM_LOCALID": "3"}
    assert place(eight) == Place(coordinator=node, count=16, index=11, devices=(3,))
    assert place(eight | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}).devices == (3,)
    assert place(eight | {"CUDA_VISIBLE_DEVICES": "0"}).devices is None  # bound to its GPU by the launcher


def test_open_mpi_is_found(place):
    assert (place(OMPI).count, place(OMPI).index) == (16, 3)
    assert place(OMPI).devices == (3,) and place(OMPI).coordinator.startswith("10.96.0.1:")
    assert place(OMPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}).devices is None


def test_flags_come_before_variables_and_both_before_what_is_found(place):
    variables = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert place(variables) == Place(coordinator="a:1", count=4, index=3)
    assert place(STEP | variables, "b:2", 5, 0) == Place(coordinator="b:2", count=5, index=0)
    assert place(STEP, num_processes=1) is None


def test_a_coordinator_completes_what_a_launcher_tells(place):
    assert place(STEP, coordinator="c:3") == Place(coordinator="c:3", count=2, index=1)


@pytest.mark.parametrize(
    ("environment", "flags", "message"),
    [
        ({}, ("a:1", None, None), "without --num_processes, --process_id; expected"),
        ({}, (None, 2, 0), "without --coordinator; expected"),
        ({}, ("a:1", 2, 2), "--process_id=2 with --num_processes=2; expected 0 to 1"),
        ({}, ("a", 2, 1), "--coordinator=a; expected HOST:PORT"),
        ({}, ("a:99999", 2, 0), "--coordinator=a:99999; expected HOST:PORT"),
        ({}, ("a:0", 2, 0), "--coordinator=a:0; expected HOST:PORT"),
        ({"JAX_NUM_PROCESSES": "two"}, (None, None, None), "JAX_NUM_PROCESSES=two; expected a whole number"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, (None, None, None), "(started by Open MPI) without --coordinator"),
        (
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"},
            (None, None, None),
            "(started by a Kubernetes Job) without --coordinator",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Kubernetes environment detected")
def test_places_that_do_not_fit_together_are_one_line(environment, flags, message, place):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        place(environment, *flags)
    assert "\n" not in str(error.value)


def python(source, **environment):
    """A running process of this source, with nothing of a launcher around it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    return subprocess.Popen(
        [sys.executable, "-c", "from kaleido_jax.errors import UserError\n" + source],
        cwd=REPO,
        env=kept | {"JAX_PLATFORMS": "cpu"} | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_single_process_imports_no_jax_to_start():
    source = "import sys\nfrom kaleido_jax.runtime import distributed as d\nd.start()\nd.barrier('x', 1)\n"
    source += "print(d.process_index(), d.process_count(), d.is_main(), 'jax' in sys.modules)"
    assert python(source).communicate(timeout=300)[0] == "0 1 True False\n"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def three(body, count=3):
    """(exit codes, stdouts, stderrs) of processes that join and run `body`, with their index as `me`."""
    source = "from kaleido_jax.runtime import distributed as d\nd.start(timeout_s=300)\nme = d.process_index()\n"
    source += f"try:\n    {body}\nexcept UserError as error:\n    print(error)\n    d.leave(2)\n"
    port = free_port()
    told = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count)}
    running = [python(source, JAX_PROCESS_ID=str(index), **told) for index in range(count)]
    outputs = [process.communicate(timeout=600) for process in running[::-1]][::-1]  # the coordinator's stdin last
    return [process.returncode for process in running], *zip(*outputs, strict=True)


@pytest.mark.slow
def test_a_barrier_names_the_process_that_never_comes():
    # On a busy machine the two do not come to the barrier within a second, nor to its end.
    body = "d._GRACE_SEC = 5; d.barrier('made', 300); d.barrier('made', 300); "
    body += "d.barrier('records', 5) if me < 2 else __import__('time').sleep(600)"
    codes, outputs, _ = three(body)
    line = f"barrier 'records': after 5 s process 2 ({socket.gethostname()}) of 3 has not come; expected every process"
    assert codes[:2] == [2, 2] and all(output.startswith(line) for output in outputs[:2])
    assert codes[2] != 0  # ended by the coordinator's end, not after ten minutes


def test_a_signal_reaches_a_process_in_a_barrier_and_both_end_with_the_code_of_its_handler():
    body = "import os, signal, sys, threading, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
    body += "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start(); "
    body += "d.barrier('made', 600) if me else time.sleep(600)"
    codes, _, errors = three(body, count=2)
    assert codes == [75, 75], errors  # not 134, with which JAX ends a process that another has left alone


def test_other_configs_and_folders_that_are_not_shared_are_told_in_every_process(tmp_path):
    for me in "01":
        (tmp_path / me).mkdir()
    body = f"""import pathlib
    d._APPEARS_SEC, folder = 0, pathlib.Path({str(tmp_path)!r})
    d.check_same('config', dict(a=1, b=(2,)))
    d.check_shared(folder)
    try:
        d.check_same('config', dict(a=1, b=[me]))
    except UserError as error:
        print(error)
    d.check_shared(folder / str(me))"""
    codes, outputs, errors = three(body, count=2)
    assert codes == [2, 2], errors
    for me, output in enumerate(outputs):
        assert output.count("\n") == 2, (output, errors)
        first, second = output.splitlines()
        assert first.startswith("process 1 with another config: b = [1] where process 0 has [0]; expected one for all")
        assert second.startswith(f"{tmp_path / str(me)}, which process 1 of 2 does not share; expected a folder on")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["0", "1"]  # and nothing is left there


def test_an_uncaught_exception_ends_its_process_without_waiting_for_the_others():
    # The coordinator, whose end would abort the other, waits until its stdin is closed: when that has ended.
    codes, _, errors = three("print(1 / 0) if me else (__import__('sys').stdin.read(), d.barrier('records', 1))", 2)
    assert codes == [2, 1] and errors[1].rstrip().endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(("index", "reason"), [(0, "for the others to reach it"), (1, "which cannot be reached")])
def test_a_start_that_the_others_miss_is_one_line(index, reason):
    source = "from kaleido_jax.errors import MissingProcess\nfrom kaleido_jax.runtime import distributed as d\n"
    source += f"try:\n    d.start('localhost:{free_port()}', 2, {index}, 1)\n"
    source += "except MissingProcess as error:\n    print(error)\n    d.leave(4)"
    process = python(source)
    output, error = process.communicate(timeout=300)
    assert process.returncode == 4 and output.count("\n") == 1, error
    assert reason in output and "Traceback" not in error and "Check failure" not in error


def test_a_taken_port_is_one_line(place):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of the coordinator on this machine: Address already in use"):
            distributed.start(f"localhost:{port}", 2, 0)


def test_processes_wait_for_each_other_once_for_each_kind_of_arguments(monkeypatch):
    waits = []
    monkeypatch.setattr(distributed, "barrier", lambda *_: waits.append(1))
    monkeypatch.setattr(distributed, "_compiled_together", set())
    function = jax.jit(lambda x, scale: scale * x, static_argnums=1)
    for x, scale, expected in (
        (np.ones(2), 2, 1),
        (np.zeros(2), 2, 1),  # other values compile nothing
        (np.ones(3), 2, 2),
        (np.ones(2, np.float16), 2, 3),
        (np.ones(2), 3, 4),  # compiled in
        (jax.device_put(np.ones(2)), 2, 5),
        (np.ones(3), 2, 5),
    ):
        distributed.compile_together(function, x, scale)
        assert len(waits) == expected
    distributed.compile_together(jax.jit(lambda x, scale: x), np.ones(2), 2)
    assert len(waits) == 6
