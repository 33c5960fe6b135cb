"""python -m kaleido_jax.main [VERB] --config=FILE[:args] [--config.key=value ...] --workdir=DIR."""

import logging as std_logging
import sys
import textwrap
from pathlib import Path
from typing import Any

from absl import logging

from kaleido_jax.config.checks import unknown_key, validate
from kaleido_jax.errors import UserError, nearest, user_error
from kaleido_jax.runtime.xla_flags import set_cpu_flag
from kaleido_jax.verbs import VERBS
from kaleido_jax.verbs.verb import CONFIG, WORKDIR, Verb

COMMON = (CONFIG.name, WORKDIR.name)  # flags of most verbs, told once in the help
HELP = """usage: python -m kaleido_jax.main [VERB] --config=FILE[:args] [--config.KEY=VALUE ...] --workdir=DIR

verbs (none = train):
{verbs}

flags:
{flags}

Every field with its unit or reason: kaleido_jax/config/schema.py"""


def run() -> None:
    """Entry point: exits with 0, 2 (bad input), 3 (a loss is not finite), each with one line, or 130 (stopped)."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"kaleido_jax: error: {error}\n")
        sys.exit(2)
    except FloatingPointError as error:
        sys.stderr.write(f"kaleido_jax: error: {error}\n")
        sys.exit(3)
    except KeyboardInterrupt:
        sys.exit(130)


def main(argv: list[str]) -> None:
    """Parses the command line and calls the verb.

    Raises:
      UserError: anything wrong with the command line, the config or the files it names.
    """
    if any(arg in ("--help", "-h", "--helpfull", "help") for arg in argv):
        sys.stdout.write(help_text() + "\n")
        return
    name, flags = split_verb(argv)
    verb = VERBS[name]
    arguments = parse_flags(verb, flags)
    set_cpu_flag()  # before JAX, which verbs import only now that the flags are known to be right
    start_logging()
    verb.run(**arguments)


def help_text() -> str:
    """The text of --help, put together from the verbs."""
    rows = {flag: [name for name, verb in VERBS.items() if flag in verb.FLAGS] for flag in (CONFIG, WORKDIR)}
    rows |= {flag: [name] for name, verb in VERBS.items() for flag in verb.FLAGS if flag.name not in COMMON}
    lines = []
    for flag, names in rows.items():
        left = f"--{flag.name}[={flag.value}]" if flag.bare else f"--{flag.name}={flag.value}"
        text = flag.help if flag.name in COMMON else f"{names[0]}: {flag.help}"
        lines += textwrap.wrap(text, 96, initial_indent=f"  {left:<23}", subsequent_indent=" " * 25)
        if flag is CONFIG:
            lines.append("  --config.KEY=VALUE     change one field, e.g. --config.train.batch_size=64")
    lines.append("  --help                 this text")
    return HELP.format(verbs="\n".join(f"  {n:<10} {v.HELP}" for n, v in VERBS.items()), flags="\n".join(lines))


def start_logging() -> None:
    """Our progress at INFO on stderr; libraries only from WARNING on."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold(logging.INFO)
    for name in ("jax", "orbax", "grain", "kaleido_jax"):
        std_logging.getLogger(name).setLevel(std_logging.WARNING)
    std_logging.getLogger("kaleido_jax").setLevel(std_logging.INFO)
    logging.get_absl_logger().addFilter(_not_from_libraries)


def _not_from_libraries(record: std_logging.LogRecord) -> bool:
    # Orbax and clu log through absl's one logger; their INFO lines would drown ours.
    # That a checkpoint is opened only for reading is meant so, yet Orbax warns of it.
    meant = "checkpoint_manager" in record.pathname and "read" in str(record.msg)
    return (record.levelno >= std_logging.WARNING and not meant) or "kaleido_jax" in record.pathname


def split_verb(argv: list[str]) -> tuple[str, list[str]]:
    """(verb, the rest); the verb is the one word that is not a flag.

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
    """The arguments of verb.run(), by name; of equal flags the last wins.

    Raises:
      UserError: a flag that is missing, unknown or has an impossible value.
    """
    known = {f"--{flag.name}": flag for flag in verb.FLAGS}
    given, overrides = {}, []
    for arg in flags:
        name, equals, value = arg.partition("=")
        if CONFIG in verb.FLAGS and name.startswith("--config."):
            overrides.append(arg)
        elif name not in known or not (equals or known[name].bare):
            expected = [f"{flag}=" for flag in known] + (["--config.KEY=VALUE"] if CONFIG in verb.FLAGS else [])
            raise user_error(f"unknown flag {arg}", ", ".join(expected), "see --help")
        elif known[name].sets:
            overrides.append(f"--config.{known[name].sets}={value or known[name].bare}")
        else:
            given[name] = value
    arguments = {}
    for name, flag in known.items():
        value = given.get(name)
        if not value and flag.missing:
            raise user_error(f"no {name}", f"{name}={flag.value}", flag.missing)
        if value and flag.words and value not in flag.words:
            raise user_error(f"{name}={value}", f"one of {', '.join(flag.words)}", "choose one")
        if not flag.sets:
            arguments[flag.name] = flag.kind(value) if value else None
    if CONFIG in verb.FLAGS:
        arguments[CONFIG.name] = validate(load_config(given[f"--{CONFIG.name}"], overrides))
    return arguments


def load_config(spec: str, overrides: list[str]):
    """The ConfigDict of FILE[:args] with --config.KEY=VALUE flags applied by ml_collections.

    Raises:
      UserError: no such file, an error inside it, an unknown key or a value of the wrong type.
    """
    path = spec.split(":")[0]
    if not Path(path).is_file():
        folder = Path(path).parent if Path(path).parent.is_dir() else Path("configs")
        have = ", ".join(sorted(str(p) for p in folder.glob("*.py"))) or "none there"
        raise user_error(f"no config file {path}", f"a file such as {have}", "correct --config")
    plain = _read_flags(
        [f"--config={spec}"],
        lambda text: user_error(f"{spec}: {text}", "a config file whose get_config() runs", "correct it"),
    )
    for override in overrides:
        _check_override(override, plain)
    return _read_flags(
        [f"--config={spec}", *overrides],
        lambda text: user_error(f"{' '.join(overrides)}: {text}", "values of the fields' types", "correct them"),
    )


def _read_flags(arguments, to_error):
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        values(["main", *arguments])
        return values.config
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, ImportError, SyntaxError) as error:
        raise to_error(" ".join(str(error).split()) or type(error).__name__) from error


def _check_override(override, config):
    """Says what is wrong with one --config.KEY=VALUE; ml_collections' own messages do not name the nearest key."""
    key, equals, value = override.removeprefix("--config.").partition("=")
    if not equals:
        raise user_error(f"{override} without a value", "--config.KEY=VALUE", "write the value behind '='")
    path, group = [], config
    for part in key.split("."):
        if not hasattr(group, "keys"):
            raise user_error(f"{override}", f"no field below config.{'.'.join(path)}", "correct the key")
        if part not in group:
            raise unknown_key(".".join(path), part, group.keys())
        path, group = [*path, part], group[part]
    if isinstance(group, bool | int | float) and not _parses(value, type(group)):
        raise user_error(f"--config.{key}={value}", type(group).__name__, "correct the value")


def _parses(value, kind):
    if kind is bool:
        return value.lower() in ("true", "false", "1", "0")
    try:
        kind(value)
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    run()
