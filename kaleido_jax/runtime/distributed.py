"""Several processes as one run: joining them by jax.distributed, barriers, and who is the main process.

Imports JAX only where there are several processes. JAX's private API stands in `_detect` and `_service`.
"""

import atexit
import collections
import functools
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from kaleido_jax.errors import MissingProcess, UserError, user_error
from kaleido_jax.runtime.signals import end_at_once, ignore_sigterm

log = logging.getLogger(__name__)

START_SEC = 300  # JAX's own default
COMPILE_SEC = 3600  # from the first process that has compiled a function to the last
TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")
_DAY_SEC = 24 * 3600
_GRACE_SEC = 2.0
_APPEARS_SEC = 10  # for a new file to be seen by other hosts
_WAITING = "waits for other processes"
_PLACES = "kaleido_jax/hosts"  # of the coordination service's keys: where each process runs
_compiled_together: set[Any] = set()  # signatures of calls
_uses: dict[str, int] = collections.defaultdict(int)  # of each barrier's name in this process


@dataclass(frozen=True, kw_only=True)
class Place:
    """This process among those of the run."""

    coordinator: str  # "host:port" of process 0
    count: int
    index: int
    devices: tuple[int, ...] | None = None  # the machine's devices that it takes; None = all


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_s: float = START_SEC,
) -> None:
    """Joins the other processes of the run, if this is one of several; must come before JAX's first computation.

    What is not given is taken from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, then from what JAX
    knows of SLURM, Open MPI, TPU VMs, GKE and Kubernetes. A single process imports no JAX here and joins nothing;
    num_processes=1 makes a process one that was started beside others, as for a sweep.

    Raises:
      UserError: the values do not fit together.
      MissingProcess: not all processes came within `timeout_s`.
    """
    place = _place(coordinator, num_processes, process_id)
    if place is None or process_count() > 1:  # the second: a program that uses the package has joined them before
        return
    # Before the import, to run after JAX's own handler, which ends the calls that still wait: a thread that came back
    # from one only while the interpreter ends would abort the process.
    atexit.register(_end_waiting)
    import jax

    if jax.config.jax_cpu_collectives_implementation is None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its SIGTERM handler would swallow the signal in every verb that does not ask it; training has its own.
    jax.config.update("jax_enable_preemption_service", False)
    local = _host(place) in ("localhost", "127.0.0.1")
    if place.index == 0:
        _check_port_free(place)  # JAX crashes if it is taken
    join = functools.partial(
        jax.distributed.initialize,
        place.coordinator,
        place.count,
        place.index,
        list(place.devices) if place.devices else None,
        cluster_detection_method="deactivate",
        initialization_timeout=int(timeout_s) + 60,  # at JAX's own time-out the process aborts with a stack trace
        # A process that ends early waits there for the others, which may still sample; if one of them dies instead,
        # its missing heartbeat ends the waiting.
        shutdown_timeout_seconds=_DAY_SEC,
        coordinator_bind_address=place.coordinator if local else None,
    )
    try:
        if not _wait(join, timeout_s):
            raise _not_joined(place, timeout_s)
    except RuntimeError as error:  # JAX has started its devices before, or the service refused this process
        found = f"jax.distributed: {' '.join(str(error).split())}"
        raise user_error(found, "to join the other processes", "see what stands before the start") from error
    sys.excepthook = _leave_after_traceback
    _service().client.key_value_set(f"{_PLACES}/{place.index}", socket.gethostname())
    log.info("%d processes, coordinator %s", place.count, place.coordinator)


def process_index() -> int:
    """The number of this process in the run, 0 if it is the only one; starts no device."""
    return _service().process_id if _service() else 0


def process_count() -> int:
    """The number of processes in the run; starts no device."""
    return _service().num_processes if _service() else 1


def is_main() -> bool:
    """Whether this process writes the files and says the results: the one with index 0."""
    return process_index() == 0


def barrier(name: str, timeout_s: float) -> None:
    """Waits until every process of the run has called it as often with this name; returns at once in a single one.

    Signal handlers run while it waits.

    Raises:
      MissingProcess: not all came within `timeout_s` of the first; it names those that are missing.
    """
    count = process_count()
    if count == 1:
        return
    import jax

    _uses[name] += 1
    client, point = _service().client, f"kaleido_jax/barriers/{name}/{_uses[name]}"
    client.key_value_set(f"{point}/{process_index()}", "here")
    try:
        _wait(lambda: client.wait_at_barrier(point, int(timeout_s * 1000)))
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        if "DEADLINE_EXCEEDED" not in reason:
            raise user_error(
                f"barrier '{name}' of {count} processes failed: {reason}",
                "all processes alive",
                "look at their logs for the first that ended, and start the run again",
                MissingProcess,
            ) from error
        here = {int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get(point)}
        raise _missing(name, timeout_s, sorted(set(range(count)) - here)) from error
    client.key_value_delete(f"{point}/{process_index()}")  # all have passed, so nobody will read it


def tell(name: str, make: Callable[[], Any], timeout_s: float) -> Any:
    """What `make` returns in the main process (JSON's types), in every process; the others do not call it.

    So decisions that depend on files are taken once, and no process waits in a collective for one that decided
    otherwise.

    Raises:
      MissingProcess: the main process did not come within `timeout_s`.
    """
    if process_count() == 1:
        return make()
    _uses[name] += 1
    key = f"kaleido_jax/told/{name}/{_uses[name]}"
    if is_main():
        value = make()
        _service().client.key_value_set(key, json.dumps(value))
        return value
    found = []
    if not _wait(lambda: found.append(_service().client.blocking_key_value_get(key, int(timeout_s * 1000))), timeout_s):
        found = f"'{name}' not told after {timeout_s:.0f} s"
        raise user_error(found, "the main process there", "look at its log", MissingProcess)
    return json.loads(found[0])


def gather(name: str, mine: Any, timeout_s: float) -> list[Any]:
    """What each process gives (JSON's types), by its index, in every process.

    Raises:
      UserError: as `barrier`.
    """
    if process_count() == 1:
        return [mine]
    _uses[name] += 1
    client, key = _service().client, f"kaleido_jax/gathered/{name}/{_uses[name]}"
    client.key_value_set(f"{key}/{process_index()}", json.dumps(mine))
    barrier(f"agree on {name}", timeout_s)
    given = {int(path.rpartition("/")[2]): json.loads(value) for path, value in client.key_value_dir_get(key)}
    return [given[index] for index in range(process_count())]


def agree(name: str, mine: bool, timeout_s: float) -> bool:
    """Whether it holds in every process.

    Raises:
      UserError: as `barrier`.
    """
    return all(gather(name, mine, timeout_s))


def check_shared(folder: Path) -> None:
    """Checks that all processes see one folder, before hours of work go into it.

    Raises:
      UserError: what the main process writes there does not appear in another one.
      MissingProcess: as `barrier`.
    """
    if process_count() == 1:
        return

    def mark() -> str:
        path = folder / f".shared-{secrets.token_hex(8)}"
        path.touch()
        return path.name

    path = folder / tell("a file in the workdir", mark, START_SEC)
    seen = gather("a shared workdir", _appears(path), START_SEC)
    if is_main():
        path.unlink(missing_ok=True)
    if not all(seen):
        others = ", ".join(str(index) for index, here in enumerate(seen) if not here)
        found = f"{folder}, which process {others} of {process_count()} does not share"
        raise user_error(found, "a folder on a file system that all hosts share", "choose another --workdir")


def _appears(path: Path) -> bool:
    """Whether a file is there, as soon as a network's file system knows of it."""
    for _ in range(_APPEARS_SEC):
        if path.exists():
            return True
        time.sleep(1)
    return path.exists()


def check_same(what: str, mine: Mapping[str, Any]) -> None:
    """Checks that all processes have the same values (JSON's types) as the main one.

    Raises:
      UserError: they differ; it names the process and the first field.
      MissingProcess: as `barrier`.
    """
    if process_count() == 1:
        return
    own = json.loads(json.dumps(dict(mine)))
    main = tell(what, lambda: own, START_SEC)
    different = [key for key in sorted(main | own) if main.get(key) != own.get(key)]
    key = different[0] if different else ""
    reason = f"{key} = {own.get(key)!r} where process 0 has {main.get(key)!r}" if different else None
    found = gather(f"the same {what}", reason, START_SEC)
    for index, reason in enumerate(found):
        if reason is not None:
            do = "start all with the same code, config file and flags"
            raise user_error(f"process {index} with another {what}: {reason}", "one for all processes", do)


def compile_together(function: Any, *args: Any, **keywords: Any) -> None:
    """Compiles a jitted function for these arguments, and waits until all processes have done so.

    Its first call starts the collectives, for which processes wait only half a minute on CPU; how long a compilation
    takes differs by more than that between busy machines. The call then finds the compiled function. Later calls with
    arguments of the same kind do nothing; all processes must make the same calls in the same order.
    """
    import jax

    leaves, structure = jax.tree.flatten((args, keywords))
    signature = function, structure, tuple(map(_kind, leaves))
    if signature in _compiled_together:
        return
    function.lower(*args, **keywords).compile()
    barrier("compiled", COMPILE_SEC)
    _compiled_together.add(signature)


def _kind(leaf: Any) -> Any:
    """What a compilation depends on: of an array shape, dtype and sharding, of anything else its value."""
    if not hasattr(leaf, "dtype"):
        return leaf
    return leaf.shape, str(leaf.dtype), getattr(leaf, "sharding", None)


def leave(code: int) -> NoReturn:
    """Ends this process with an exit code; where there are several, without waiting for the others.

    JAX waits at the end until all processes have come there, which those that wait for this one never do. They are
    told by their launcher, or by the coordination service that this process is gone.
    """
    ignore_sigterm()  # which a launcher sends to the others when the first one has ended: the code says more
    if process_count() == 1:
        sys.exit(code)
    if is_main():
        time.sleep(_GRACE_SEC)  # with it goes the coordinator, which aborts the others: they write their lines first
    end_at_once(code)


def _leave_after_traceback(*error: Any) -> None:
    sys.__excepthook__(*error)
    leave(1)


def _wait(call: Callable[[], None], timeout_s: float | None = None) -> bool:
    """Whether a call has ended in time; it runs in a thread, since Python handles no signals while JAX's calls wait."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:  # noqa: BLE001  # whatever it is, the waiting thread raises it
            future.set_exception(error)

    # Not an executor's thread: when a signal handler has raised, the interpreter would wait for the call to time out.
    threading.Thread(target=run, name=_WAITING, daemon=True).start()
    try:
        future.result(timeout_s)
    except TimeoutError:
        if future.done():
            raise
        return False
    return True


def _end_waiting() -> None:
    for thread in threading.enumerate():
        if thread.name == _WAITING:
            thread.join(_GRACE_SEC)


# --------------------------------------------------------------------------------------------- which process this is


def _place(coordinator: str | None, count: int | None, index: int | None) -> Place | None:
    """This process among several, or None if it is the only one."""
    env = os.environ
    coordinator = coordinator or env.get("JAX_COORDINATOR_ADDRESS") or None
    count = _number("JAX_NUM_PROCESSES") if count is None else count
    index = _number("JAX_PROCESS_ID") if index is None else index
    told = bool(coordinator) or count is not None or index is not None
    if count == 1 or not (told or _launched()):
        return None
    devices = None
    if not coordinator or count is None or index is None:
        found = _detect(coordinator)
        if found is None and not told and _launched() == "tpu":  # a machine with such a device, but no TPU VM
            return None
        if found is not None:
            coordinator, devices = coordinator or found.coordinator, found.devices
            count, index = found.count if count is None else count, found.index if index is None else index
    if not coordinator or count is None or index is None:
        values = {"coordinator": coordinator, "num_processes": count, "process_id": index}
        missing = ", ".join(f"--{name}" for name, value in values.items() if value in (None, ""))
        raise user_error(
            f"one of several processes{_of_launcher()} without {missing}",
            "coordinator, number of processes and index of each",
            "give --coordinator=HOST:PORT --num_processes=N --process_id=I, or --num_processes=1 to run alone",
        )
    if count == 1:
        return None
    if not 0 <= index < count:
        raise user_error(
            f"--process_id={index} with --num_processes={count}", f"0 to {count - 1}", "number the processes from 0"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or len(port) > 5 or not 0 < int(port) < 2**16:
        raise user_error(f"--coordinator={coordinator}", "HOST:PORT", "name process 0's machine and a free port of it")
    return Place(coordinator=coordinator, count=count, index=index, devices=devices)


def _number(variable: str) -> int | None:
    value = os.environ.get(variable, "")
    if value and not value.isdecimal():
        raise user_error(f"{variable}={value}", "a whole number", "correct or unset it")
    return int(value) if value else None


def _launched() -> str:
    """The launcher that has started several processes, or might have, by its traces in the environment; "" = none."""
    env = os.environ
    # In a shell of salloc or sbatch SLURM_NTASKS is that of the job, but no step, or one with a single task, runs it.
    if "SLURM_STEP_NODELIST" in env and int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or 1) > 1:
        return "slurm"
    if int(env.get("OMPI_COMM_WORLD_SIZE") or 1) > 1:
        return "ompi"
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return "k8s"
    tpu = any(Path(device).exists() for device in TPU_DEVICES) and "tpu" in (env.get("JAX_PLATFORMS") or "tpu")
    return "tpu" if tpu else ""


def _of_launcher() -> str:
    names = {"slurm": "SLURM", "ompi": "Open MPI", "tpu": "a TPU VM", "k8s": "a Kubernetes Job"}
    return f" (started by {names[_launched()]})" if _launched() else ""


def _detect(coordinator: str | None) -> Place | None:
    """This process as JAX's detection of clusters sees it, or None if it sees none."""
    from jax._src.clusters import ClusterEnv  # private: jax.distributed.initialize tells nobody what it detected

    try:
        kinds = (kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method)
        cluster = next((kind for kind in kinds if kind.is_env_present()), None)
        if cluster is None:
            return None
        port = os.environ.get("JAX_COORDINATOR_PORT")
        return Place(
            coordinator=coordinator
            or cluster.get_coordinator_address(timeout_secs=START_SEC, override_coordinator_port=port),
            count=cluster.get_process_count(),
            index=cluster.get_process_id(),
            devices=_own_devices(cluster.get_local_process_id(), cluster.get_process_count()),
        )
    except OSError as error:  # the metadata server of a TPU VM that has none
        if _launched() != "tpu":
            raise
        log.warning("the TPU's metadata server does not answer (%s): this process runs alone", error)
        return None
    except (RuntimeError, KeyError, ValueError, IndexError) as error:
        raise user_error(
            f"{' '.join(str(error).split())}{_of_launcher()}",
            "an environment that JAX can read the processes from",
            "give --coordinator=HOST:PORT --num_processes=N --process_id=I, or --num_processes=1 to run alone",
        ) from error


def _own_devices(local_index: int | None, count: int) -> tuple[int, ...] | None:
    """The GPUs of a process that a launcher started; None = all that it sees.

    JAX would give the k-th process of a machine the k-th GPU, which leaves seven of eight idle where there is one
    process for each machine, and fails where the launcher already shows each process its own GPU alone.
    """
    env = os.environ
    alone = int(env.get("SLURM_STEP_NUM_NODES") or 0) == count or env.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    visible = env.get("CUDA_VISIBLE_DEVICES") or env.get("ROCR_VISIBLE_DEVICES") or ""
    bound = bool(visible) and "," not in visible
    if local_index is None or alone or bound or env.get("JAX_LOCAL_DEVICE_IDS"):  # the last is read by JAX
        return None
    return (local_index,)


def _service() -> Any:
    """JAX's connection to the coordination service: process_id, num_processes, client; None before JAX is imported.

    Private, since jax.process_index() starts the devices and the client's barriers and keys have no public face.
    """
    if "jax" not in sys.modules:
        return None
    from jax._src.distributed import global_state

    return global_state if global_state.client is not None else None


# ------------------------------------------------------------------------------------------------------ what went wrong


def _host(place: Place) -> str:
    return place.coordinator.rpartition(":")[0].strip("[]")


def _check_port_free(place: Place) -> None:
    port = int(place.coordinator.rpartition(":")[2])
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise user_error(
            f"port {port} of the coordinator on this machine: {error.strerror}",
            "a free port",
            "end the run that holds it, or choose another port (--coordinator, or JAX_COORDINATOR_PORT on a cluster)",
        ) from error


def _not_joined(place: Place, timeout_s: float) -> UserError:
    found = f"process {place.index} of {place.count} waited {timeout_s:.0f} s"
    if place.index == 0:
        return user_error(
            f"{found} for the others to reach it at {place.coordinator}",
            f"{place.count} processes with the same --coordinator",
            "look at their logs; check that they run and can open this port",
            MissingProcess,
        )
    try:
        socket.create_connection((_host(place), int(place.coordinator.rpartition(":")[2])), timeout=5).close()
    except OSError as error:
        return user_error(
            f"{found} for the coordinator {place.coordinator}, which cannot be reached ({error})",
            "process 0 there",
            "look at its log; check the address, the firewall and the proxy variables",
            MissingProcess,
        )
    return user_error(
        f"{found}: the coordinator {place.coordinator} is there, but another process is not",
        f"{place.count} processes with the same --coordinator",
        "look at the logs of the others",
        MissingProcess,
    )


def _missing(name: str, timeout_s: float, missing: list[int]) -> UserError:
    if not missing:
        return user_error(
            f"barrier '{name}': process {process_index()} came after the others had waited {timeout_s:.0f} s",
            "all processes there in this time",
            "look at what held it up, and start the run again",
            MissingProcess,
        )
    hosts = dict(_service().client.key_value_dir_get(_PLACES))
    names = [f"{index} ({hosts[key]})" if (key := f"{_PLACES}/{index}") in hosts else str(index) for index in missing]
    return user_error(
        f"barrier '{name}': after {timeout_s:.0f} s process {', '.join(names)} of {process_count()} has not come",
        "every process there",
        "look at the log of each that is missing, and start the run again",
        MissingProcess,
    )
