"""Command line: python -m kaleido_jax.main [VERB] --config=NAME[:ARGUMENT] [--config.KEY=VALUE ...] --workdir=DIR."""

import logging
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from kaleido_jax.config.fields import expand
from kaleido_jax.config.load import check_model, config_from_flags, config_of_workdir
from kaleido_jax.errors import Aborted, MissingProcess, Terminated, UserError, nearest, user_error
from kaleido_jax.runtime import distributed
from kaleido_jax.runtime.files import refuse_address
from kaleido_jax.runtime.signals import ignore_sigterm, raise_on_sigterm
from kaleido_jax.runtime.xla_flags import before_backend
from kaleido_jax.verbs import VERBS
from kaleido_jax.verbs.verb import CONFIG, PROCESSES, WORKDIR, Flag, Verb

COMMON = (CONFIG, WORKDIR, *PROCESSES)  # flags of most verbs; the help lists them once
HELP = """usage: python -m kaleido_jax.main [VERB] --config=FILE[:args] [--config.KEY=VALUE ...] --workdir=DIR

verbs (none = train):
{verbs}

flags:
{flags}

Every field with its unit or reason: kaleido_jax/config/schema.py"""


def run() -> None:
    """Entry point: exits with 0, or with one line and one of these codes.

    2 bad input; 3 no finite gradient; 4 another process of the run is missing; 75 stopped by SIGTERM, and the same
    command goes on (EX_TEMPFAIL, on which schedulers may be told to requeue); 130 stopped by Ctrl-C.
    """
    raise_on_sigterm()
    sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not stop the run
    try:
        main(sys.argv[1:])
        sys.stdout.flush()  # what fails there, Python would tell in its own words as it ends
    except MissingProcess as error:
        _fail(str(error), 4)
    except UserError as error:
        _fail(str(error), 2)
    except FloatingPointError as error:
        _fail(str(error), 3)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is buffered, which Python flushes as it ends
        what = "broken pipe: the program that read the output has ended"
        _fail(str(user_error(what, "one that reads it all", "write the output to a file")), 2)
    except OSError as error:  # what the system says of a path that the user gave: missing, full, read-only, ...
        found = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        _fail(str(user_error(found, "a readable and writable path", "correct the path or its permissions")), 2)
    except Aborted:
        sys.stderr.write("stopped at once; the last checkpoint is whole\n")
        sys.stderr.flush()
        os._exit(130)  # without waiting for what is still being written
    except Terminated:
        ignore_sigterm()  # of a launcher that ends all when the first one has ended
        sys.exit(75)  # of all processes, which wait for each other there
    except KeyboardInterrupt:
        distributed.leave(130)


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"kaleido_jax: error: {_origin()}{' '.join(message.splitlines())}\n")
    distributed.leave(code)


def _origin() -> str:
    return f"process {distributed.process_index()}: " if distributed.process_count() > 1 else ""


def main(argv: list[str]) -> None:
    """Parses the command line and calls the verb.

    Raises:
      UserError: anything wrong with the command line, the config or the files it names.
    """
    check_text(argv)
    if any(arg in ("--help", "-h", "--helpfull", "help") for arg in argv):
        sys.stdout.write(help_text([arg for arg in argv if arg in VERBS]) + "\n")
        return
    name, flags = split_verb(argv)
    verb = VERBS[name]
    arguments = parse_flags(verb, flags)
    # Before JAX, which verbs import only now that the flags have been checked.
    before_backend()
    start_logging()
    processes = {flag.name: arguments.pop(flag.name) for flag in PROCESSES if flag in verb.FLAGS}
    if processes:
        distributed.start(**processes)
    verb.run(**arguments)


def check_text(argv: list[str]) -> None:
    """Checks that file names and flags can be read and written as text.

    Raises:
      UserError: the locale is not UTF-8, or a flag is not.
    """
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        raise user_error(f"a locale with the encoding {encoding}", "UTF-8", "set LC_ALL=C.UTF-8 or PYTHONUTF8=1")
    for arg in argv:
        if any("\ud800" <= character <= "\udfff" for character in arg):  # how Python holds bytes outside UTF-8
            raise user_error(f"{arg!r}", "text in UTF-8", "correct its characters")


def help_text(names: Sequence[str] = ()) -> str:
    """The text of --help for the verbs of these names; () = all."""
    verbs = {name: verb for name, verb in VERBS.items() if name in names or not names}
    common = [flag for flag in COMMON if any(flag.name in _names(verb) for verb in verbs.values())]
    names = [flag.name for flag in COMMON]
    own = [(name, flag) for name, verb in verbs.items() for flag in verb.FLAGS if flag.name not in names]
    lines = []
    for name, flag in [*((None, flag) for flag in common), *own]:
        joint = "." if flag.keyed else "="
        left = f"--{flag.name}[={flag.value}]" if flag.bare else f"--{flag.name}{joint}{flag.value}"
        text = f"{name}: {flag.help}" if name else flag.help
        lines += textwrap.wrap(text, 120, initial_indent=f"  {left:<22} ", subsequent_indent=" " * 25)
        if flag is CONFIG:
            lines.append("  --config.KEY=VALUE     change one field, e.g. --config.train.batch_size=64")
    lines.append("  --help                 this text; with a verb, only the part about it")
    return HELP.format(verbs="\n".join(f"  {n:<10} {v.HELP}" for n, v in verbs.items()), flags="\n".join(lines))


def _names(verb: Verb) -> set[str]:
    return {flag.name for flag in verb.FLAGS}


def start_logging() -> None:
    """Logs to stderr: our own messages from INFO, those of libraries and of other processes than 0 from WARNING."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname).1s %(asctime)s] %(origin)s%(message)s", "%H:%M:%S"))
    handler.addFilter(_is_news)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("kaleido_jax").setLevel(logging.INFO)


def _is_news(record: logging.LogRecord) -> bool:
    record.origin = "" if distributed.is_main() else _origin()
    if record.levelno < logging.WARNING and not distributed.is_main():
        return False
    # The parts of our checkpoints hold no metadata of Orbax's own, on purpose.
    if str(record.msg).startswith("Metadata file does not exist"):
        return False
    # A save that fails in the background: pages of its tracebacks, and then our own line about it.
    if record.name == "asyncio" and "exception was never retrieved" in str(record.msg):
        return False
    return record.filename not in ("future.py", "async_checkpointer.py")


def split_verb(argv: list[str]) -> tuple[str, list[str]]:
    """(verb, flags); the verb is the one word that is not a flag.

    Raises:
      UserError: unknown verb or more than one.
    """
    words = [arg for arg in argv if not arg.startswith("-")]
    if len(words) > 1:
        raise user_error(f"verbs {' '.join(words)}", "one verb; flag values follow '='", "correct the command")
    verb = words[0] if words else "train"
    if verb not in VERBS:
        near = nearest(verb, VERBS)
        do = f"did you mean '{near}'?" if near else "see --help"
        raise user_error(f"unknown verb '{verb}'", f"one of {', '.join(VERBS)}", do)
    return verb, [arg for arg in argv if arg.startswith("-")]


def parse_flags(verb: Verb, flags: list[str]) -> dict[str, Any]:
    """The arguments of verb.run(), by name; if a flag is given twice, the last one wins.

    Raises:
      UserError: a flag is missing or unknown, or its value is not allowed.
    """
    known = {f"--{flag.name}": flag for flag in verb.FLAGS}
    given, overrides, fields = _read_flags(verb, known, flags)
    config = f"--{CONFIG.name}"
    for name in (f"--{flag.name}" for flag in verb.FLAGS if flag.configures):
        if given.get(name):
            check_model(given[name])  # otherwise it would be told as a config
        given.setdefault(config, given.get(name, ""))
    for name, keys in fields.items():
        if f"--{name}" not in given:
            found = f"--{name}.{next(iter(keys))} without --{name}"
            raise user_error(found, f"--{name}={known[f'--{name}'].value}", "name it")
    replaced = {name for flag in verb.FLAGS if given.get(f"--{flag.name}") for name in flag.replaces}
    if CONFIG in verb.FLAGS and CONFIG.name not in replaced and not given.get(config):
        given[config] = config_of_workdir(given.get(f"--{WORKDIR.name}", ""))
    arguments = {}
    for name, flag in known.items():
        value = given.get(name)
        if not value and flag.missing and flag.name not in replaced:
            raise user_error(f"no {name}", f"{name}={flag.value}", flag.missing)
        if value and flag.words and value not in flag.words:
            raise user_error(f"{name}={value}", f"one of {', '.join(flag.words)}", "choose one")
        if not flag.sets:
            arguments[flag.name] = _typed(flag, value) if value else None
        if flag.has_fields and value:
            arguments[flag.name] = value, fields.get(flag.name, {})
    if CONFIG in verb.FLAGS and CONFIG.name in replaced:
        if overrides or given.get(config):
            other = next(f"--{flag.name}" for flag in verb.FLAGS if CONFIG.name in flag.replaces)
            raise user_error(f"{config} beside {other}", "one of them", f"set fields by {other}.KEY=VALUE")
    elif CONFIG in verb.FLAGS:
        arguments[CONFIG.name] = config_from_flags(given[config], overrides)
    return arguments


def _read_flags(
    verb: Verb, known: dict[str, Flag], flags: list[str]
) -> tuple[dict[str, Any], list[str], dict[str, dict[str, str]]]:
    """(values by flag, changes of the config as flags, changes of other flags' fields), with their texts."""
    given, overrides, fields = {}, [], {}
    for arg in flags:
        name, equals, value = arg.partition("=")
        group, _, key = name.partition(".")
        if CONFIG in verb.FLAGS and name.startswith("--config."):
            overrides.append(arg)
        elif key and equals and group in known and known[group].has_fields:
            fields.setdefault(known[group].name, {})[key] = value
        elif key and equals and group in known and known[group].keyed:
            values = given.setdefault(group, {})
            values.pop(key, None)
            values[key] = value
        elif equals and name in known and known[name].repeated:
            given.setdefault(name, []).append(value)
        elif name not in known or known[name].keyed or not (equals or known[name].bare):
            expected = [f"{name}.{flag.value}" if flag.keyed else f"{name}=" for name, flag in known.items()]
            expected += ["--config.KEY=VALUE"] if CONFIG in verb.FLAGS else []
            raise user_error(f"unknown flag {arg}", ", ".join(expected), "see --help")
        elif equals and not value:  # as of a shell's variable that is not set
            flag = known[name]
            do = flag.missing or "write it, or leave the flag out"
            raise user_error(f"{arg} without a value", f"{name}={flag.value}", do)
        elif known[name].sets:
            overrides.append(f"--config.{known[name].sets}={value or known[name].bare}")
        else:
            given[name] = value or known[name].bare
    return given, overrides, fields


def _typed(flag: Flag, value: Any) -> Any:
    if flag.keyed or flag.repeated:
        return value
    if flag.kind is int and not (value.isdecimal() and len(value) < 20):  # Python reads 4300 digits at most
        raise user_error(f"--{flag.name}={value}", "a whole number", "correct it")
    if flag.kind is float and not value.replace(".", "", 1).isdecimal():
        raise user_error(f"--{flag.name}={value}", "a number such as 0.08", "correct it")
    if flag.kind is Path:
        refuse_address(value, f"--{flag.name}")
        value = expand(value, f"--{flag.name}")
    return flag.kind(value)


if __name__ == "__main__":
    run()
