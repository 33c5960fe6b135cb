"""The launchers: scripts parse, pass on commands, signals and exit codes; dry runs say what would be started."""

import fcntl
import functools
import importlib.util
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import yaml

from kaleido_jax import main
from kaleido_jax.verbs import VERBS

REPO = Path(__file__).parent.parent.parent
LAUNCH = REPO / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


def environment(**more):
    """That of a shell on this machine: one CPU, no launcher around it, the interpreter of the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_", "JAX_NUM_"))}
    return kept | {"JAX_PLATFORMS": "cpu", "PYTHON": sys.executable} | more


def run(*command, timeout=600, cwd=REPO, **more):
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def checked(words):
    """The verb and its arguments, as the command line reads these words."""
    name, flags = main.split_verb(list(words))
    return name, main.parse_flags(VERBS[name], flags)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_bash(script):
    done = run("bash", "-n", script)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------------------- local.sh

TOLD = "import os, sys, time, signal\nme = int(os.environ['JAX_PROCESS_ID'])\n"


def local(source, *options):
    return ["bash", str(LAUNCH / "local.sh"), *options, "--", sys.executable, "-c", TOLD + source]


def test_local_starts_processes_that_know_each_other_and_prefixes_their_output():
    source = "print(os.environ['JAX_NUM_PROCESSES'], os.environ['JAX_NUM_CPU_DEVICES'])\n"
    source += "print(os.environ['JAX_COORDINATOR_ADDRESS'].split(':')[0])"
    done = run(*local(source, "--processes=3", "--devices=4"))
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == [
        "",
        *(f"[{i}] {line}" for i in range(3) for line in ("3 4", "localhost")),
    ]


def test_local_stops_the_others_when_one_fails_and_ends_with_its_code():
    done = run(*local("sys.exit(3) if me == 1 else time.sleep(1000)", "--processes=3"))
    assert done.returncode == 3
    assert "a process ended with exit code 3; the others are stopped" in done.stderr


@pytest.mark.parametrize(("visible", "taken"), [(None, ["0,1,2,3", "4,5,6,7"]), ("2,3", ["0", "1"])])
def test_local_shares_the_gpus_that_are_visible(visible, taken, tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text('#!/bin/sh\nfor i in 0 1 2 3 4 5 6 7; do echo "GPU $i: H100"; done\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    more = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = run(*local("print(os.environ['JAX_LOCAL_DEVICE_IDS'])"), PATH=path, JAX_PLATFORMS="cuda", **more)
    assert sorted(done.stdout.splitlines()) == [f"[{i}] {ids}" for i, ids in enumerate(taken)], done.stderr


@pytest.mark.parametrize("visible", ["-1", "", "NoDevFiles"])
def test_local_takes_the_cpu_where_no_gpu_is_visible(visible, tmp_path):
    (tmp_path / "nvidia-smi").write_text('#!/bin/sh\necho "GPU 0: H100"\necho "GPU 1: H100"\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    source = "print(os.environ['JAX_NUM_CPU_DEVICES'], os.environ.get('JAX_LOCAL_DEVICE_IDS'))"
    done = run(*local(source), PATH=path, JAX_PLATFORMS="", CUDA_VISIBLE_DEVICES=visible)
    assert sorted(done.stdout.splitlines()) == ["[0] 1 None", "[1] 1 None"], done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_a_signal_to_all_and_waits_for_them(number):
    source = "def save(*_):\n    time.sleep(0.3 * me)\n    print('saved', flush=True)\n    sys.exit(75)\n"
    source += f"signal.signal({int(number)}, save)\nprint('ready', flush=True)\ntime.sleep(1000)"
    # Background shells ignore Ctrl-C, and bash cannot trap what it was started to ignore.
    heed = functools.partial(signal.signal, number, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "text": True, "preexec_fn": heed}
    process = subprocess.Popen(local(source), cwd=REPO, env=environment(), **pipes)
    ready = [process.stdout.readline() for _ in range(2)]
    assert sorted(ready) == ["[0] ready\n", "[1] ready\n"]
    process.send_signal(number)
    assert sorted(process.stdout.read().splitlines()) == ["[0] saved", "[1] saved"]
    assert process.wait(timeout=300) == 75


def test_ctrl_c_in_a_terminal_reaches_all_processes():
    source = "signal.signal(signal.SIGINT, lambda *_: sys.exit(75))\nprint('ready', flush=True)\ntime.sleep(1000)"
    terminal, end = pty.openpty()

    def take_terminal():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    ends = dict.fromkeys(("stdin", "stdout", "stderr"), end)
    process = subprocess.Popen(
        local(source), cwd=REPO, env=environment(), start_new_session=True, preexec_fn=take_terminal, **ends
    )
    shown = b""
    while shown.count(b"] ready") < 2:
        shown += os.read(terminal, 4096)
    time.sleep(0.5)  # into the loop that waits for them
    os.write(terminal, b"\x03")
    try:
        assert process.wait(timeout=120) == 75, shown
    finally:
        process.kill()
        os.close(end)
        os.close(terminal)  # which hangs up what is left


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--processes=0"], "--processes=0; expected a whole number from 1"), (["plan", "--devices=2"], "behind other")],
)
def test_wrong_options_of_local_are_one_line(options, message):
    done = run("bash", LAUNCH / "local.sh", *options)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


VERB = """
import logging, types
from kaleido_jax import main, verbs
from kaleido_jax.errors import UserError
from kaleido_jax.runtime import distributed
from kaleido_jax.verbs.verb import PROCESSES, say

def run():
    import jax
    from jax.experimental import multihost_utils

    log = logging.getLogger("kaleido_jax.test")
    say(f"{jax.process_count()} processes, {jax.device_count()} devices")
    say(f"sum {multihost_utils.process_allgather(jax.numpy.asarray(10 + jax.process_index())).sum()}")
    log.info("told once")
    log.warning("told by each")
    distributed.barrier("told", 60)
    if not distributed.is_main():
        raise UserError("wrong here; expected right; correct it")
    distributed.barrier("never", 60)

verbs.register("where", types.SimpleNamespace(HELP="", FLAGS=PROCESSES, run=run))
sys.argv = ["kaleido_jax", "where"]
main.run()
"""


@pytest.mark.slow
def test_a_verb_runs_in_two_processes_and_the_one_that_fails_says_so():
    done = run(*local(VERB, "--processes=2", "--devices=2"))
    lines = done.stdout.splitlines()
    assert {"[0] 2 processes, 4 devices", "[0] sum 21"} <= set(lines), done.stdout + done.stderr
    assert sum("sum 21" in line for line in lines) == sum("told once" in line for line in lines) == 1
    warnings = sorted(re.sub(r"\d\d:\d\d:\d\d", "T", line) for line in lines if "told by each" in line)
    assert warnings == ["[0] W T] told by each", "[1] W T] process 1: told by each"]
    assert "[1] kaleido_jax: error: process 1: wrong here; expected right; correct it" in lines
    assert done.returncode == 2


# ---------------------------------------------------------------------------------------------------------------- SLURM


@pytest.fixture
def slurm(tmp_path):
    """A function that runs slurm.sbatch where SLURM's commands only write what they are called with."""
    calls = tmp_path / "calls"
    (tmp_path / "squeue").write_text('#!/bin/sh\necho "${STATE:-RUNNING None}"\n')
    (tmp_path / "squeue").chmod(0o755)
    for name, ending in (("srun", 'sleep "${SRUN_SEC:-0}"; exit "$SRUN_CODE"'), ("scontrol", "")):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{calls}\n{ending}\n')
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"

    def start(code, *arguments, **more):
        told = environment(PATH=path, SLURM_JOB_ID="7", SRUN_CODE=str(code), SLURM_SUBMIT_DIR=str(REPO), **more)
        process = subprocess.Popen(["bash", LAUNCH / "slurm.sbatch", *arguments], env=told, stderr=subprocess.PIPE)
        return process, lambda: calls.read_text().splitlines() if calls.exists() else []

    return start


@pytest.mark.parametrize(("code", "ends", "requeued"), [(0, 0, False), (2, 2, False), (3, 3, False), (75, 0, True)])
def test_sbatch_requeues_a_job_that_was_stopped_after_saving_and_no_other(code, ends, requeued, slurm):
    process, calls = slurm(code, "--config=emoji_combined", "--config.sample.captions=('sea animal',)")
    process.communicate(timeout=300)
    command = "srun --kill-on-bad-exit=1 python -u -m kaleido_jax.main --config=emoji_combined"
    assert process.returncode == ends
    assert calls()[0] == f"{command} --config.sample.captions=('sea animal',)"
    assert calls()[1:] == (["scontrol requeue 7"] if requeued else [])


@pytest.mark.parametrize(
    ("state", "ends", "requeued"), [("COMPLETING None", 75, False), ("COMPLETING TimeLimit", 0, True), ("", 0, True)]
)
def test_sbatch_leaves_a_cancelled_job_alone(state, ends, requeued, slurm):
    process, calls = slurm(75, STATE=state)
    error = process.communicate(timeout=300)[1].decode()
    assert process.returncode == ends and (calls()[1:] == ["scontrol requeue 7"]) == requeued
    assert ("not requeued, since SLURM is ending the job" in error) != requeued


def test_sbatch_lives_through_its_own_sigterm_until_the_tasks_have_saved(slurm):
    process, calls = slurm(75, SRUN_SEC="1")
    while not calls():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 0 and calls()[-1] == "scontrol requeue 7"


def test_sbatch_ends_with_the_code_of_an_srun_that_ends_before_it_waits(slurm, tmp_path):
    (tmp_path / "slowly").write_text("trap 'sleep 0.2' DEBUG\n")  # before each command
    process, _ = slurm(3, BASH_ENV=str(tmp_path / "slowly"))
    process.communicate(timeout=300)
    assert process.returncode == 3


def test_sbatch_asks_for_a_signal_in_time_and_one_task_a_node():
    told = re.findall(r"^#SBATCH (\S+)$", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE)
    assert {"--requeue", "--signal=TERM@120", "--ntasks-per-node=1", "--open-mode=append"} <= set(told)


# ------------------------------------------------------------------------------------------------ submitit and XManager

WORDS = ("train", "--config=emoji_combined", "--workdir=runs/a")


def test_submit_says_what_it_would_submit():
    done = run(sys.executable, LAUNCH / "submit.py", "--dry_run", "--nodes=2", "--hours=1.5", "--seeds=0,1", *WORDS)
    plan = json.loads(done.stdout)
    assert plan["parameters"]["nodes"] == 2 and plan["parameters"]["timeout_min"] == 90
    assert plan["parameters"]["tasks_per_node"] == 1 and plan["parameters"]["gpus_per_node"] == 8
    found = [checked(words)[1] for words in plan["commands"]]
    assert [(str(one["workdir"]), one["config"].seed) for one in found] == [("runs/a-0", 0), ("runs/a-1", 1)]
    done = run(sys.executable, LAUNCH / "submit.py", "--dry_run", "--seeds=3", "--workdir=runs/a/")
    assert json.loads(done.stdout)["commands"] == [["--workdir=runs/a-3", "--config.seed=3"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds=0,,1", *WORDS], "--seeds=0,,1; expected whole numbers, each once"),
        (["--seeds=0,0", *WORDS], "--seeds=0,0; expected"),
        (["--seeds=", *WORDS], "--seeds=; expected"),
        (["--seeds=0,1", "--config=emoji_combined"], "--seeds without --workdir; expected --workdir=DIR"),
    ],
)
@pytest.mark.parametrize("script", ["submit.py", "xmanager.py"])
def test_seeds_that_cannot_be_are_refused_before_a_job_waits_for_its_turn(script, options, message):
    done = run(sys.executable, LAUNCH / script, "--dry_run", *options)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


FAKE = """import sys, pathlib
runs = pathlib.Path(sys.argv[1])
runs.write_text(runs.read_text() + "run ")
sys.exit(75 if runs.read_text() == "run " else int(sys.argv[2]))
"""


@pytest.mark.parametrize(("ends", "code"), [(0, 0), (2, 1)])
def test_submitit_runs_a_saved_training_again_and_reports_a_failed_one(ends, code, tmp_path):
    pytest.importorskip("submitit", reason="submitit comes with the cluster extra")
    (tmp_path / "kaleido_jax").mkdir()
    (tmp_path / "kaleido_jax" / "__init__.py").write_text("")
    (tmp_path / "kaleido_jax" / "main.py").write_text(FAKE)
    (runs := tmp_path / "runs").write_text("")
    options = ("--executor=local", f"--logs={tmp_path / 'logs'}")
    done = run(sys.executable, LAUNCH / "submit.py", *options, runs, ends, cwd=tmp_path)
    assert (runs.read_text(), done.returncode) == ("run run ", code), done.stderr
    assert code == 0 or "ended with exit code 2" in done.stderr


def test_submitit_leaves_a_cancelled_job_alone(slurm, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("launch_submit", LAUNCH / "submit.py")
    spec.loader.exec_module(submit := importlib.util.module_from_spec(spec))
    assert not submit.is_ending()  # no job of SLURM
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for state, ends in (("RUNNING None", False), ("COMPLETING None", True), ("COMPLETING TimeLimit", False)):
        monkeypatch.setenv("STATE", state)
        assert submit.is_ending() == ends, state
    monkeypatch.setenv("STATE", "COMPLETING None")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "srun"))  # ends as a training that has saved
    monkeypatch.setenv("SRUN_CODE", "75")
    before = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        with pytest.raises(RuntimeError, match="not requeued, since SLURM is ending the job"):
            submit.Run([])()
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGUSR2, before[1])


@pytest.fixture
def xmanager(monkeypatch):
    """launch/xmanager.py as a module."""
    monkeypatch.syspath_prepend(str(LAUNCH))
    spec = importlib.util.spec_from_file_location("launch_xmanager", LAUNCH / "xmanager.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def test_xmanager_says_what_it_would_launch_without_being_there(xmanager, capsys):
    xmanager.main(["--dry_run", "--seeds=3", *WORDS])
    plan = json.loads(capsys.readouterr().out)
    assert plan["executor"] == "local" and plan["program"]["binary"] == sys.executable
    assert plan["work_units"][0][:2] == ["-m", "kaleido_jax.main"]
    assert checked(plan["work_units"][0][2:])[1]["config"].seed == 3
    assert not [name for name in sys.modules if name.startswith("xmanager")]


def test_xmanager_asks_a_cluster_for_its_accelerators(xmanager, capsys):
    for words, wanted in (
        (["--accelerator=h100"], {"h100": 8}),
        (["--accelerator=tpu_v5p", "--count=2x2x1"], {"tpu_v5p": "2x2x1"}),
    ):
        xmanager.main(["--dry_run", "--executor=kubernetes", "--image=registry/kaleido", *words, *WORDS])
        plan = json.loads(capsys.readouterr().out)
        assert plan["requirements"] == wanted and plan["program"] == {"image": "registry/kaleido"}
        assert plan["work_units"] == [list(WORDS)]  # behind the image's entry point


@pytest.mark.slow
def test_xmanager_launches_a_local_experiment(tmp_path):
    if importlib.util.find_spec("xmanager") is None:
        pytest.skip("xmanager comes with the cluster extra")
    command = (LAUNCH / "xmanager.py", "plan", "--config=emoji_combined")
    done = run(sys.executable, *command, HOME=str(tmp_path))
    assert done.returncode == 0 and "trainable" in done.stdout + done.stderr, done.stdout + done.stderr


# ------------------------------------------------------------------------------------------------------ TPU VMs and GKE


def test_tpu_vm_runs_the_command_on_all_workers():
    where = ("--name=slice", "--zone=us-east5-a", "--project=mine", "--dry_run")
    done = run("bash", LAUNCH / "tpu_vm.sh", *where, *WORDS, "--config.sample.captions=('sea animal', 'bug')")
    (line,) = done.stdout.splitlines()
    words = subprocess.check_output(["bash", "-c", f"printf '%s\\n' {line}"], text=True).splitlines()
    assert words[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh"]
    assert words[5:9] == ["slice", "--zone=us-east5-a", "--worker=all", "--project=mine"]
    remote = words[9].removeprefix("--command=").partition("kaleido_jax.main")[2]
    inner = subprocess.check_output(["bash", "-c", f"printf '%s\\n' {remote}"], text=True).splitlines()
    name, arguments = checked(inner)
    assert name == "train" and arguments["config"].sample.captions == ("sea animal", "bug")


def test_tpu_vm_installs_and_stops(tmp_path):
    where = ("--name=slice", "--zone=z", "--dry_run")
    setup = run("bash", LAUNCH / "tpu_vm.sh", *where, "setup").stdout
    assert "tpu-vm scp" in setup and "tpu" in setup.splitlines()[-1]
    assert "kill\\ -TERM" in run("bash", LAUNCH / "tpu_vm.sh", *where, "stop").stdout
    done = run("bash", LAUNCH / "tpu_vm.sh", "setup")
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_tpu_vm_says_so_where_a_host_has_no_python_that_will_do(tmp_path):
    line = run("bash", LAUNCH / "tpu_vm.sh", "--name=slice", "--zone=z", "--dry_run", "setup").stdout.splitlines()[-1]
    words = subprocess.check_output(["bash", "-c", f"printf '%s\\n' {line}"], text=True).splitlines()
    copy = ["tar", "-C", REPO, "-czf", tmp_path / "kaleido.tar.gz", "launch", "setup.py", "pyproject.toml"]
    subprocess.run(copy, check=True)
    for name in ("python3.11", "python3.12", "python3.13", "python3"):  # as where there is 3.10 alone
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = run("bash", "-c", words[-1].removeprefix("--command="), cwd=tmp_path, PATH=path, PYTHON="")
    assert done.returncode == 1 and "error: no Python 3.11, 3.12 or 3.13 found" in done.stderr, done.stderr


def test_jobsets_hold_commands_that_the_command_line_takes_and_as_many_hosts_everywhere():
    tpu, gpu = yaml.safe_load_all((LAUNCH / "gke_jobset.yaml").read_text())
    for jobset in (tpu, gpu):
        assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
        (group,) = jobset["spec"]["replicatedJobs"]
        job = group["template"]["spec"]
        (container,) = job["template"]["spec"]["containers"]
        assert container["command"] == ["python", "-u", "-m", "kaleido_jax.main"]
        assert checked(container["args"])[0] == "train"
        assert job["parallelism"] == job["completions"]
        assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2, 3]  # not 75
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    host = f"{gpu['metadata']['name']}-{group['name']}-0-0.{gpu['metadata']['name']}"
    assert variables["JAX_COORDINATOR_ADDRESS"].split(":")[0] == host
    assert variables["JAX_NUM_PROCESSES"] == str(job["parallelism"]) and "JAX_PROCESS_ID" in variables
    assert container["ports"] == [{"containerPort": int(variables["JAX_COORDINATOR_ADDRESS"].split(":")[1])}]


def test_files_that_the_page_on_scale_names_exist():
    named = re.findall(r"\blaunch/[\w.]+|\bconfigs/[\w.]+\.py", (REPO / "docs" / "scale.md").read_text())
    assert named and not [name for name in set(named) if not (REPO / name.rstrip(".")).exists()]
