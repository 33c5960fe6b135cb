"""init: looks at somebody's pictures, and writes a config that fits them."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaleido_jax.config.load import OWN, load_config
from kaleido_jax.config.schema import Annotate, AnnotateBbox, AnnotateBlob, Config
from kaleido_jax.errors import user_error
from kaleido_jax.runtime.devices import check_backend
from kaleido_jax.runtime.files import make_folder, write_atomically
from kaleido_jax.runtime.workdir import CONFIG, VOCABULARY
from kaleido_jax.verbs.verb import WORKDIR, Flag, say

if TYPE_CHECKING:
    from kaleido_jax.intake.choose import Choice, Wishes

HELP = "look at your own pictures and write a config that fits them, config.py in the workdir"
FLAGS = (
    Flag(
        name="data",
        value="DIR",
        help="a folder for each class, a folder of photos, a table of captions, COCO, GBC or tar shards",
        missing="name the folder of your pictures",
        kind=Path,
    ),
    WORKDIR,
    Flag(name="split", value="NAME", help="the part of the data, as they call it, e.g. train2017"),
    Flag(name="columns", value="IMAGE,CAPTION", help="columns of a table, and maybe a third with descriptions"),
    Flag(
        name="segments",
        value="NAMES",
        help="latents, e.g. text,bbox,voken; without it voken and what nearly all images have",
    ),
    Flag(name="image_size", value="PX", help="32 (the default on a CPU) or 64", kind=int),
    Flag(name="minutes", value="N", help="of training, by which the steps are chosen", kind=float),
    Flag(name="detector", value="FILE", help="a YOLOX as .onnx file, for boxes where the data have none", kind=Path),
    Flag(name="masks", value="FILE", help="an .onnx mask model or a folder of SAM, for ellipses", kind=Path),
)


def run(data: Path, workdir: Path, **flags: Any) -> None:
    """Prints what the data are, and writes workdir/config.py and workdir/spiece.model.

    Raises:
      UserError: no data, a model that is missing, or the workdir has a config already.
    """
    _refuse_existing(workdir)
    check_backend()
    import jax

    from kaleido_jax.intake.choose import choose
    from kaleido_jax.intake.config_file import config_text
    from kaleido_jax.intake.recognize import recognize
    from kaleido_jax.intake.survey import lines, survey

    wishes = _wishes(flags)
    found = recognize(data, flags["split"] or "", _names(flags["columns"]))
    seen = survey(found, max_boxes=3)
    say("\n".join(lines(seen, found)))
    choice = choose(found, seen, wishes, accelerated=jax.default_backend() != "cpu")
    title = f"{found.what[0].upper()}{found.what[1:]}: {data}"
    command = _command({"data": data, "workdir": workdir} | flags)
    text = config_text(choice, title=title, command=command, workdir=shlex.quote(str(workdir)))
    make_folder(workdir, "--workdir")
    write_atomically(workdir / VOCABULARY, choice.vocabulary)
    write_atomically(workdir / OWN, text.encode())  # last: with it the workdir is ready
    config = load_config(workdir / OWN)
    say("\n".join(_chosen(config, choice, len(seen.looks)) + _expected(config, choice)))
    where = shlex.quote(str(workdir))
    say(f"wrote {workdir / OWN}; look at it, change what you like, and then:")
    say(f"  python -m kaleido_jax.main annotate --workdir={where}\n  python -m kaleido_jax.main --workdir={where}")


def _names(flag: str | None) -> list[str]:
    return [name.strip() for name in (flag or "").split(",") if name.strip()]


def _refuse_existing(workdir: Path) -> None:
    for name in (OWN, CONFIG):
        if (workdir / name).exists():
            do = "use it, remove it, or name another --workdir"
            raise user_error(f"{workdir / name} exists", "a workdir without a config", do)


def _wishes(flags: Mapping[str, Any]) -> "Wishes":
    from kaleido_jax.annotate.registry import check_models
    from kaleido_jax.intake.choose import Wishes

    detector, masks, columns = flags["detector"], flags["masks"], flags["columns"]
    if columns and not 2 <= len(_names(columns)) <= 3:
        raise user_error(f"--columns={columns}", "IMAGE,CAPTION or IMAGE,CAPTION,DESCRIPTION", "correct it")
    if flags["segments"] and not _names(flags["segments"]):
        raise user_error(f"--segments={flags['segments']}", "names, e.g. text,voken", "correct it, or leave it out")
    if masks and not detector:
        raise user_error("--masks without --detector", "boxes, inside which masks are made", "name a detector too")
    if detector:  # opened, so that a wrong one is not found only by `annotate`
        bbox = AnnotateBbox(kind="onnx", model=str(detector))
        blob = AnnotateBlob(kind="sam" if masks and masks.is_dir() else "onnx", model=masks and str(masks))
        check_models(Annotate(bbox=bbox, blob=blob), ("bbox", "blob") if masks else ("bbox",))
    return Wishes(
        segments=tuple(_names(flags["segments"])),
        image_size=flags["image_size"],
        minutes=flags["minutes"],
        detector=str(detector or ""),
        masks=str(masks or ""),
    )


def _command(flags: Mapping[str, Any]) -> str:
    given = (f"--{name}={shlex.quote(str(value))}" for name, value in flags.items() if value is not None)
    return " ".join(["python -m kaleido_jax.main init", *given])


def _chosen(config: Config, choice: "Choice", looked: int) -> list[str]:
    tokens, caption = choice.longest_caption
    shown = repr(caption if len(caption) <= 60 else f"{caption[:57]}...")
    longest = f"{tokens} token{'s' * (tokens != 1)} ({shown})"
    lines = [
        f"chosen: {config.model.denoiser.image_size} px; latents {', '.join(config.latents.segments)}",
        f"  a vocabulary of {choice.num_pieces} pieces; the longest caption has {longest}, "
        f"captions up to {config.data.max_caption_tokens} are kept, latents up to {config.latents.max_latents_tokens}",
    ]
    if choice.labeled < looked:
        lines.append(
            f"  {choice.labeled} of {looked} images have {', '.join(choice.labels)}; the others will be left out"
        )
    if choice.too_long:
        lines.append(f"  {choice.too_long} of {looked} images are longer and will be left out")
    return lines


def _expected(config: Config, choice: "Choice") -> list[str]:
    """What the run needs, by `plan` and by rates that were measured."""
    from kaleido_jax.latents.tokenizer import load_tokenizer
    from kaleido_jax.plan.memory import bytes_by_kind
    from kaleido_jax.plan.program import build_program
    from kaleido_jax.plan.report import parameters_by_part

    rows = load_tokenizer(config.model.t5.vocabulary, config.latents.codebook_size).base_vocab_size
    kinds = bytes_by_kind(build_program(config, rows))
    parameters = sum(number for number, _ in parameters_by_part(config).values())
    stored = sum(kinds[name] for name in ("parameters", "EMA", "optimizer"))
    images = config.train.num_steps * config.train.batch_size
    return [
        f"expected: {parameters / 1e6:.1f} M parameters, {sum(kinds.values()) / 1e6:,.0f} MB of memory for them and "
        f"their averages, {stored / 1e6:,.0f} MB for a checkpoint",
        f"  training: {config.train.num_steps:,} steps, which see each picture {images / choice.training:.0f} times, "
        f"in about {choice.minutes:.0f} minutes on {choice.measured_on}, where {choice.rate:,.0f} images/s follow from "
        "a measured rate and this model's FLOPs; "
        "and a minute or two before the first step, to compile it",
    ]
