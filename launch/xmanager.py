"""One run, or one for each of several seeds, as an XManager experiment (pip install ".[cluster]").

    python launch/xmanager.py --config=emoji_combined --workdir=runs/emoji              # on this machine
    python launch/xmanager.py --executor=kubernetes --image=gcr.io/mine/kaleido --accelerator=h100 --count=8 \\
        --seeds=0,1,2 --config=imagenet_combined --workdir=/runs/imagenet \\
        --config.mesh.fsdp=8 --config.train.accumulate=4                                # runs/imagenet-0, ...

Everything that is not an option here goes to `python -m kaleido_jax.main`. Each work unit is one host; for runs over
several hosts use gke_jobset.yaml or slurm.sbatch. Without --image one is built from launch/Dockerfile, which needs
docker. --dry_run prints what would be launched and needs no xmanager.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from submit import commands  # beside this file

ROOT = Path(__file__).resolve().parent.parent


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of this script, and the command line of kaleido_jax."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("--executor", choices=("local", "kubernetes", "vertex"), default="local")
    parser.add_argument("--title", default="kaleido")
    parser.add_argument("--image", help="of launch/Dockerfile, in a registry that the cluster reads")
    parser.add_argument("--accelerator", default="h100", help="XManager's word for it, e.g. h100, a100_80gib, tpu_v5p")
    parser.add_argument("--count", default="8", help="how many, or a TPU's topology such as 2x2x1")
    parser.add_argument("--seeds", help="e.g. 0,1,2: one work unit for each, with its own --workdir")
    parser.add_argument("--dry_run", action="store_true")
    return parser.parse_known_args(argv)


def describe(options: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
    """What is launched, as plain data."""
    local = options.executor == "local"
    if local:
        program = {"binary": sys.executable, "env": {"PYTHONPATH": _python_path()}}
    else:
        program = {"image": options.image} if options.image else {"dockerfile": "launch/Dockerfile"}
    return {
        "title": options.title,
        "executor": options.executor,
        "program": program,
        "requirements": {} if local else {options.accelerator: _count(options.count)},
        # An image has the command line's beginning as its entry point.
        "work_units": [(["-m", "kaleido_jax.main"] if local else []) + run for run in commands(options.seeds, rest)],
    }


def _count(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _python_path() -> str:
    before = os.environ.get("PYTHONPATH")
    return f"{ROOT}{os.pathsep}{before}" if before else str(ROOT)


def launch(plan: dict[str, Any]) -> None:
    """Creates the experiment and adds its work units; local ones are waited for."""
    # Python puts a script's folder first, where this file would be taken for the package of its name.
    sys.path = [folder for folder in sys.path if Path(folder).resolve() != ROOT / "launch"]
    from xmanager import xm, xm_local

    executors = {"local": xm_local.Local, "kubernetes": xm_local.Kubernetes, "vertex": xm_local.Vertex}
    executor = executors[plan["executor"]](requirements=xm.JobRequirements(**plan["requirements"]))
    program = plan["program"]
    if "binary" in program:
        spec = xm.Binary(path=program["binary"])
    elif "image" in program:
        spec = xm.Container(image_path=program["image"])
    else:
        spec = xm.Dockerfile(path=str(ROOT), dockerfile=str(ROOT / program["dockerfile"]))
    with xm_local.create_experiment(experiment_title=plan["title"]) as experiment:
        packaged = xm.Packageable(spec, executor.Spec(), env_vars=program.get("env", {}))
        (executable,) = experiment.package([packaged])
        for arguments in plan["work_units"]:
            experiment.add(xm.Job(executable, executor=executor, args=arguments))


def main(argv: list[str]) -> None:
    """Prints or launches the experiment."""
    options, rest = parse(argv)
    plan = describe(options, rest)
    if options.dry_run:
        sys.stdout.write(json.dumps(plan, indent=2) + "\n")
        return
    from absl import flags

    flags.FLAGS(sys.argv[:1])  # XManager reads its own from there, with their defaults
    launch(plan)


if __name__ == "__main__":
    main(sys.argv[1:])
