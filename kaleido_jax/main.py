"""python -m kaleido_jax.main [VERB] --config=FILE[:args] [--config.key=value ...] --workdir=DIR."""

import sys
from pathlib import Path

from kaleido_jax.errors import UserError, user_error
from kaleido_jax.runtime.xla_flags import set_cpu_flag

VERBS = {
    "train": "train (and sample a grid at the end); goes on by itself if the workdir holds a checkpoint",
    "annotate": "a data source -> records with latents, a manifest and a report; goes on where it was stopped",
    "sample": "captions -> latents, images and one grid, from the workdir's latest checkpoint",
    "evaluate": "measure the workdir's latest checkpoint by config.eval.protocol",
    "convert": "T5 or MDM weights into another format: --input=PATH --output=DIR --format=FORMAT, no config",
    "plan": "no training: parameters of a config, counted from shapes alone",
}
CONVERT = {
    "--input": "a T5 checkpoint or a denoiser's weights",
    "--output": "the folder to write",
    "--format": "the format to write",
}
FORMATS = ("t5x", "huggingface", "kaleido", "mdm")
HELP = """usage: python -m kaleido_jax.main [VERB] --config=FILE[:args] [--config.KEY=VALUE ...] --workdir=DIR

verbs (none = train):
{verbs}

flags:
  --config=FILE          a file of configs/, e.g. configs/fashion_combined.py
  --config.KEY=VALUE     change one field, e.g. --config.train.batch_size=64
  --workdir=DIR          folder of the run: config.json, metrics.jsonl, checkpoints/, samples/, eval/
  --limit=N              annotate: only the first N images, as --config.annotate.limit=N
  --sample_report[=N]    annotate: N images in report.html (100), as --config.annotate.report_samples=N
  --input=PATH           convert: T5 as t5x or safetensors; MDM's vis_model.pth, its or our safetensors, or a workdir
                         (EMA: its T5 as t5x or huggingface, else its denoiser); the kind is recognized, and nothing in
                         a .pth is run
  --output=DIR           convert: a new folder
  --format=FORMAT        convert: t5x or huggingface (T5), mdm (denoisers, for torch) or kaleido (ours, both)
  --help                 this text

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
    """Parses the command line and calls one function a verb.

    Raises:
      UserError: anything wrong with the command line, the config or the files it names.
    """
    if any(arg in ("--help", "-h", "--helpfull", "help") for arg in argv):
        sys.stdout.write(HELP.format(verbs="\n".join(f"  {v:<10} {t}" for v, t in VERBS.items())) + "\n")
        return
    verb, flags = split_verb(argv)
    arguments = parse_convert(flags) if verb == "convert" else parse_flags(verb, flags)
    set_cpu_flag()
    from kaleido_jax import verbs  # imports jax, so only after the flags are known to be right

    verbs.start_logging()
    getattr(verbs, verb)(*arguments)


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
        from kaleido_jax.errors import nearest

        near = nearest(verb, VERBS)
        do = f"did you mean '{near}'?" if near else "see --help"
        raise user_error(f"unknown verb '{verb}'", f"one of {', '.join(VERBS)}", do)
    return verb, [arg for arg in argv if arg.startswith("-")]


def parse_flags(verb: str, flags: list[str]):
    """(validated config, workdir) of the command line.

    Raises:
      UserError: a flag that is missing, unknown or has an impossible value.
    """
    from kaleido_jax.config.checks import validate

    if verb == "annotate":
        flags = [_spelled_out(flag) for flag in flags]
    named = [flag for flag in flags if flag.startswith("--config=")]
    if not named:
        raise user_error("no --config", "--config=FILE", "name a file of configs/, e.g. configs/fashion_combined.py")
    for flag in flags:
        if not flag.startswith(("--config=", "--config.", "--workdir=")):
            raise user_error(f"unknown flag {flag}", "--config=, --config.KEY=VALUE or --workdir=", "see --help")
    workdir = [flag.removeprefix("--workdir=") for flag in flags if flag.startswith("--workdir=")]
    if verb != "plan" and not (workdir and workdir[-1]):
        raise user_error("no --workdir", "--workdir=DIR", "name the folder of the run")
    config = load_config(named[-1].removeprefix("--config="), [f for f in flags if f.startswith("--config.")])
    return validate(config), Path(workdir[-1]) if workdir else None


def _spelled_out(flag):
    """The field that a short flag of `annotate` means."""
    name, _, value = flag.partition("=")
    return {
        "--limit": f"--config.annotate.limit={value}",
        "--sample_report": f"--config.annotate.report_samples={value or 100}",
    }.get(name, flag)


def parse_convert(flags: list[str]) -> tuple[Path, Path, str]:
    """(input, output, format) of the verb convert.

    Raises:
      UserError: a flag that is missing, unknown or has an impossible value.
    """
    given = dict(flag.partition("=")[::2] for flag in flags)
    if unknown := sorted(given.keys() - CONVERT):
        raise user_error(f"unknown flag {unknown[0]}", f"{', '.join(f'{flag}=' for flag in CONVERT)}", "see --help")
    for flag, what in CONVERT.items():
        if not given.get(flag):
            raise user_error(f"no {flag}", f"{flag}=VALUE", f"name {what}")
    source, output, form = (given[flag] for flag in CONVERT)
    if form not in FORMATS:
        raise user_error(f"--format={form}", f"one of {', '.join(FORMATS)}", "choose one")
    return Path(source), Path(output), form


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
    from kaleido_jax.config.checks import unknown_key

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
