"""What a figure was measured on, for the files in benchmarks/results."""

import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path


def describe(*packages: str) -> str:
    """Date, CPU, cores, memory, versions and command as lines of Markdown."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    lines = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "CPU": f"{_field('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores, "
        f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.0f} GiB",
        "versions": ", ".join([f"Python {platform.python_version()}", *versions]),
        "command": f"`python -m {_module()} {' '.join(sys.argv[1:])}`".replace(" `", "`"),
    }
    return "\n".join(f"- {name}: {value}" for name, value in lines.items())


def _module():
    return f"benchmarks.{Path(sys.argv[0]).stem}"


def _field(path, name):
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return line.split(":", 1)[1].strip()
    return "unknown"
