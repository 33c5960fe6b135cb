"""Checks a kaleido_jax that is installed, as its user would meet it: every module imports, the commands run.

Command:  PYTHON -P launch/check_installed.py [--extra=NAME] FOLDER
          with the Python of the environment, in any folder; FOLDER must not exist, and gets what the commands write.
          With --extra only the modules that this extra brings are imported.
Result:   one line for each check; exit code 1 and the output of a command that fails.
"""

import argparse
import importlib
import importlib.metadata
import json
import pkgutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOR_OTHERS = ("kaleido_jax.interop.seqio", "kaleido_jax.interop.t5.t5x_network")  # need seqio and t5x
SMALL = (
    "--config.sample.captions=('fruit',)",
    "--config.sample.images_per_caption=1",
    "--config.sample.num_steps=5",
    "--config.sample.guidance_interval=()",
)


def main() -> None:
    """Runs all checks; what they write goes below the folder that the command names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extra")
    parser.add_argument("folder", type=Path)
    flags = parser.parse_args()
    folder = flags.folder.absolute()
    folder.mkdir(parents=True)
    if flags.extra:
        say(f"extra {flags.extra}: {', '.join(import_extra(flags.extra))} can be imported")
        return
    import kaleido_jax

    package = Path(kaleido_jax.__file__).parent
    here = Path(__file__).parent.parent
    if package.parent == here:
        sys.exit(f"{package} is the checkout; expected an installed package; run it with python -P in another folder")
    say(f"kaleido_jax {importlib.metadata.version('kaleido_jax')} on Python {sys.version.split()[0]}, in {package}")
    count = import_all(kaleido_jax)
    say(f"{count} modules import")
    files = {file.name for file in importlib.metadata.files("kaleido_jax") or ()}
    if lacking := {"LICENSE", "NOTICE", "py.typed", "LICENSE-T5", "LICENSE-konva.txt"} - files:
        sys.exit(f"the installed package lacks {', '.join(sorted(lacking))}")
    say("licenses, notices and the mark of types are there")
    script = next(Path(file.locate()) for file in importlib.metadata.files("kaleido_jax") or () if is_script(file))
    for command in ([sys.executable, script], [sys.executable, "-m", "kaleido_jax.main"]):
        if "studio" not in run([*command, "--help"], folder):
            sys.exit(f"{command} --help names no verb studio")
    say("--help answers, as a script and as a module")
    for config in ("emoji_combined", "cc12m:text", "annotate_coco"):
        kaleido_jax.load_config(config)
    say("the configs are found by their names")
    run([sys.executable, script, "sample", "--model=emoji-tiny", "--workdir=sampled", *SMALL], folder)
    drawn = sorted((folder / "sampled").rglob("00-fruit-0.png"))
    if len(drawn) != 1 or drawn[0].stat().st_size < 500:
        sys.exit(f"sample wrote {[str(path) for path in folder.rglob('*')]}; expected a picture of fruit")
    say("sample draws a picture with the bundled weights")
    with studio(script, folder) as address, urllib.request.urlopen(address, timeout=30) as page:
        if b"<title>" not in page.read():
            sys.exit(f"{address} answered without a page")
    say("studio serves its page")


def import_all(package: object) -> int:
    """Imports every module of the package but those that stand upon programs for others; how many there are."""
    names = [module.name for module in pkgutil.walk_packages(package.__path__, "kaleido_jax.")]
    names = [name for name in names if name not in FOR_OTHERS and not name.startswith("kaleido_jax.configs.")]
    for name in names:
        importlib.import_module(name)
    return len(names)


def import_extra(extra: str) -> list[str]:
    """Imports the modules of the packages that an extra names; "NAME VERSION" of each package."""
    brought = []
    for text in importlib.metadata.requires("kaleido_jax") or ():
        requirement = Requirement(text)
        if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
            continue
        name = requirement.name
        modules = [m for m, of in importlib.metadata.packages_distributions().items() if same_package(name, of)]
        for module in modules:
            if module.isidentifier() and not module.startswith("_"):
                importlib.import_module(module)
        brought.append(f"{name} {importlib.metadata.version(name)}")
    if not brought:
        sys.exit(f"kaleido_jax {importlib.metadata.version('kaleido_jax')} has no extra {extra!r}")
    return brought


def same_package(name: str, others: list[str]) -> bool:
    """Whether a package is among others, however it is written."""
    return canonicalize_name(name) in {canonicalize_name(other) for other in others}


def is_script(file: importlib.metadata.PackagePath) -> bool:
    """Whether an installed file is the console script."""
    return file.name in ("kaleido_jax", "kaleido_jax.exe")


def run(command: list, folder: Path) -> str:
    """Stdout of a command that runs in a folder; ends the checks if it fails."""
    done = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode:
        sys.exit(f"{json.dumps([str(word) for word in command])} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


@contextmanager
def studio(script: Path, folder: Path) -> Iterator[str]:
    """The address of a studio that runs meanwhile."""
    with subprocess.Popen(
        [sys.executable, str(script), "studio", "--port=0"], cwd=folder, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            words = process.stdout.readline().split()
            yield next(word for word in words if word.startswith("http://127.0.0.1:"))
        finally:
            process.terminate()


def say(text: str) -> None:
    """One line for the user."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
