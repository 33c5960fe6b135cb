"""Edits of one image: which segments stay, which are sampled anew, what no longer fits, and the pictures of it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from kaleido_jax.data.scene_words import same_objects
from kaleido_jax.errors import UserError, nearest, user_error
from kaleido_jax.latents.render.image import render_outlines, render_panel
from kaleido_jax.latents.render.layout import BACKGROUND, INK, font_for
from kaleido_jax.latents.types import Latents
from kaleido_jax.runtime.files import make_folder, replacing
from kaleido_jax.sampling.contradictions import Contradiction, contradictions
from kaleido_jax.sampling.output import save_png
from kaleido_jax.sampling.recipe import EditRecipe, Recipe, RowRecipe, load_recipe, recipe_fingerprint

BEFORE, AFTER, DIFFERENCE, STRIP = "before.png", "after.png", "difference.png", "strip.png"
TITLE_PX, PANEL_PX, GAP_PX = 30, 256, 12


# ------------------------------------------------------------------------------------------------ the plan
@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an edit does to z."""

    z: Latents  # with the edits; of it, the segments before the resampled ones are kept
    changed: tuple[str, ...]  # segments whose value is another one now
    locked: tuple[str, ...]  # as asked
    held: tuple[str, ...]  # those and the given ones, which nothing resamples
    kept: tuple[str, ...]  # the first segments, under which the others are sampled
    resampled: tuple[str, ...]  # the others
    messages: list[str]


def plan_edit(
    old: Latents,
    new: Latents,
    segments: Sequence[str],
    *,
    given: Sequence[str],
    lock: str | Sequence[str],
    resample: str | Sequence[str],
    follow: bool | None,
    caption_changed: bool = False,
) -> Plan:
    """Which segments of an edited z stay and which are sampled anew.

    The prior samples the segments in order, each under those before it. So what is sampled anew are always the last
    segments: a segment behind a resampled one is resampled with it, and if it must stay, the edit is refused, since
    the prior cannot sample a segment under a later one.

    Args:
      old: z before the edit.
      new: z with the edits.
      segments: those of the model, in order.
      given: segments that the edit sets.
      lock: segments that must stay as they are.
      resample: segments to sample anew.
      follow: True samples the segments behind the edited and locked ones anew, False keeps them. None samples them anew
        unless `resample` says what else, or the text still says the same of its objects, as after another background.
      caption_changed: then all of z is behind the edit.

    Raises:
      UserError: an order of another type or of unknown segments, two for one, or one before what must stay.
    """
    _check_follow(follow)
    lock, resample = _names("lock", lock), _names("resample", resample)
    _refuse_unknown((*given, *lock, *resample), segments)
    changed = tuple(s for s in segments if getattr(new, s) != getattr(old, s))
    _refuse_two_orders(changed, given, lock, resample)
    held = {*given, *lock}
    free = 1 + max((segments.index(s) for s in held), default=-1)  # the first behind those
    asked = min((segments.index(s) for s in resample), default=len(segments))
    _refuse_earlier(segments, asked, held, resample, follow)
    edited = bool(changed or caption_changed)
    fits = changed == ("text",) and not caption_changed and same_objects(old.text, new.text)
    follows = edited and bool(follow or (follow is None and not resample and not fits))
    start = min(asked, free) if follows else asked
    more = [s for s in segments[asked:] if s not in resample]
    messages = [f"{_and(more)} {_is(more)} behind {segments[asked]} and resampled with it"] if more else []
    messages += _of_following(segments[start:], segments[-1], edited, follows, follow)
    between = [s for s in _behind(segments, changed, caption_changed) if s not in held and segments.index(s) < start]
    if between:
        kept = f"{_and(between)} kept, since text says the same of the objects"
        messages.append(kept if fits else _may_not_fit(between, changed, segments, segments[free:], follows))
    return Plan(
        z=new,
        changed=changed,
        locked=lock,
        held=tuple(s for s in segments if s in held),
        kept=tuple(segments[:start]),
        resampled=tuple(segments[start:]),
        messages=messages,
    )


def _check_follow(follow: Any) -> None:
    if not (follow is None or isinstance(follow, bool)):
        raise user_error(f"follow = {follow!r:.40}", "True, False or None", "correct it")


def _names(argument: str, given: str | Sequence[str]) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else None
    if names is None or not all(isinstance(name, str) for name in names):
        raise user_error(f"{argument} = {given!r:.40}", "a segment, or a list of segments", "correct it")
    return names


def _refuse_unknown(names: Iterable[str], segments: Sequence[str]) -> None:
    for name in names:
        if name not in segments:
            near = nearest(str(name), segments)
            do = f"did you mean {near!r}?" if near else "correct it"
            raise user_error(f"segment {name!r:.40}", f"one of {', '.join(segments)}", do)


def _refuse_two_orders(
    changed: Sequence[str], given: Sequence[str], lock: Sequence[str], resample: Sequence[str]
) -> None:
    for one, names, other, others in (
        ("locked", lock, "resampled", resample),
        ("edited", given, "resampled", resample),
        ("locked", lock, "edited", changed),
    ):
        if both := [name for name in names if name in others]:
            raise user_error(f"{_and(both)} {one} and {other}", "one of them", "leave out the other")


def _refuse_earlier(
    segments: Sequence[str], start: int, held: set[str], resample: Sequence[str], follow: bool | None
) -> None:
    """Refuses to sample a segment anew under a later one that stays."""
    behind = [s for s in segments[start:] if s in held or (follow is False and s not in resample)]
    if behind:
        raise user_error(
            f"{segments[start]} resampled before {_and(behind)}, which must stay",
            f"only segments behind all that stay, since the prior samples {', '.join(segments)} in this order",
            f"resample {_and(behind)} too, or edit {segments[start]} instead",
        )


def _of_following(anew: Sequence[str], last: str, edited: bool, follows: bool, follow: bool | None) -> list[str]:
    """What is said of the segments that follow an edit, those of `anew`; nothing where they were asked for."""
    if follow and not anew:
        return [f"nothing follows: {f'no segment is behind {last}' if edited else 'nothing was edited'}"]
    if not (follow is None and follows and anew):
        return []
    them = "it" if len(anew) == 1 else "them"
    return [f"{_and(anew)} {_is(anew)} behind the edit and sampled anew (follow=False keeps {them})"]


def _behind(segments: Sequence[str], changed: Sequence[str], caption_changed: bool) -> Sequence[str]:
    """The unchanged segments behind the first change."""
    first = 0 if caption_changed else min((segments.index(s) for s in changed), default=len(segments))
    return [s for s in segments[first:] if s not in changed]


def _may_not_fit(
    kept: Sequence[str], changed: Sequence[str], segments: Sequence[str], last: Sequence[str], follows: bool
) -> str:
    before = [s for s in changed if segments.index(s) < segments.index(kept[-1])]
    line = f"{_and(kept)} {_is(kept)} behind {_and(before) if before else 'the caption'} and may no longer fit; kept"
    if follows:
        return f"{line}, since a later segment is edited or locked"
    return f"{line} (follow=True resamples {_and(last)})" if last else line


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def contradiction_lines(old: Latents, new: Latents, plan: Plan, segments: Sequence[str]) -> list[str]:
    """One line for each contradiction in the new z: what it is, whether it was there before, and what may be done."""
    known = {one.message for one in contradictions(old)}
    return [_line(one, one.message in known, plan, segments) for one in contradictions(new)]


def _line(one: Contradiction, known: bool, plan: Plan, segments: Sequence[str]) -> str:
    line = f"{one.segments[1]} contradicts {one.segments[0]}: {one.message}"
    if known:
        return f"{line} (as before the edit)"
    if one.segments[1] in plan.resampled:
        return f"{line}; resample {one.segments[1]} with another seed, or edit it"
    stale = [s for s in one.segments if s not in (*plan.held, *plan.resampled)]
    if len(stale) != 1:
        return line
    last = max(segments.index(s) for s in plan.held)
    if segments.index(stale[0]) > last:
        return f"{line}; follow=True resamples {stale[0]}, follow=False keeps it"
    return f"{line}; edit {stale[0]} too, or keep it (it is before {segments[last]}, so it cannot follow)"


# ---------------------------------------------------------------------------------------------- recipes
def one_image(recipe: Recipe) -> RowRecipe:
    """The row of a recipe of one image.

    Raises:
      UserError: it is of several.
    """
    (row, *more), images = recipe["rows"], sum(len(row["noise_indices"]) for row in recipe["rows"])
    if more or images > 1:
        raise user_error(f"a recipe of {images} images", "of one", "take that of a PNG, or recipe_of(row, image)")
    return row


def edit_seed(seed: int, earlier: int) -> int:
    """The seed of what an edit samples anew, of an image of `seed` with so many earlier edits."""
    return (seed + earlier + 1) % 2**32


def edited_recipe(
    recipe: Recipe, *, caption: str, tokens: Sequence[int], z: Latents, settings: Mapping[str, Any], edit: EditRecipe
) -> Recipe:
    """The recipe of the edited image, without what only drawing it tells; the batches are those of the image before."""
    row: RowRecipe = recipe["rows"][0] | {
        "caption": caption,
        "latents_index": None,
        "tokens": list(tokens),
        "latents": z.to_json(),
        "problem": "",
        "pixels": None,
    }
    row.pop("files", None)
    history = [*recipe["history"], edit]
    return recipe | {"sample": recipe["sample"] | dict(settings), "rows": [row], "history": history}


def edit_recipe(
    recipe: Recipe, plan: Plan, z: Latents, caption: str, seed: int, settings: Mapping[str, Any]
) -> EditRecipe:
    """The entry of a recipe's history for an edit that gave `z`, with what it replaced."""
    row, after = recipe["rows"][0], z.to_json()
    before = {name: value for name, value in (row.get("latents") or {}).items() if value != after.get(name)}
    named = row["caption"] != caption
    return {
        "of": recipe_fingerprint(recipe),
        "changed": [*(["caption"] if named else []), *plan.changed],
        "locked": list(plan.locked),
        "resampled": list(plan.resampled),
        "seed": seed if plan.resampled else None,
        "settings": json.loads(json.dumps(settings)),
        "before": before | ({"caption": row["caption"]} if named else {}),
    }


# --------------------------------------------------------------------------------------------- pictures
@dataclass(frozen=True, kw_only=True)
class Edited:
    """An edit: the image before and after it, from the same noise."""

    before: Image.Image
    after: Image.Image
    recipe: Recipe  # of `after`; it can be edited again
    recipe_before: Recipe
    latents: Latents  # of `after`
    latents_before: Latents
    messages: list[str]  # what may not fit any more, and contradictions; one line each

    @property
    def difference(self) -> Image.Image:
        """|after - before| of each pixel and channel, 0..255."""
        return ImageChops.difference(self.before, self.after)

    def strip(self) -> Image.Image:
        """Before, after and difference beside each other with titles; below each the latents on the same picture."""
        pictures, size = (self.before, self.after, self.difference), (PANEL_PX, PANEL_PX)
        mean = float(np.asarray(self.difference, np.float32).mean())
        titles = ("before", "after", f"difference (mean {mean:.1f})")
        large = [picture.resize(size, Image.Resampling.NEAREST) for picture in pictures]
        panels = [
            render_panel(z, PANEL_PX, p) for z, p in zip((self.latents_before, self.latents), large, strict=False)
        ]
        panels.append(render_outlines(large[2], self.latents))
        height = TITLE_PX + 2 * GAP_PX + PANEL_PX + max(panel.height for panel in panels)
        sheet = Image.new("RGB", (GAP_PX + 3 * (PANEL_PX + GAP_PX), height), BACKGROUND)
        draw, font = ImageDraw.Draw(sheet), font_for(PANEL_PX)
        for i, (title, picture, panel) in enumerate(zip(titles, large, panels, strict=True)):
            left = GAP_PX + i * (PANEL_PX + GAP_PX)
            draw.text((left, TITLE_PX / 2), title, font=font, fill=INK, anchor="lm")
            sheet.paste(picture, (left, TITLE_PX))
            sheet.paste(panel, (left, TITLE_PX + PANEL_PX + GAP_PX))
        return sheet

    def save(self, folder: str | Path) -> Path:
        """Writes before.png and after.png with their recipes inside, difference.png and strip.png.

        Returns:
          The path of after.png.

        Raises:
          UserError: the folder holds the pictures of another edit, which stay.
        """
        folder = Path(folder).expanduser()
        refuse_other_edit(folder, self.recipe_before, self.recipe)
        make_folder(folder, "folder")
        for name, picture in ((DIFFERENCE, self.difference), (STRIP, self.strip())):
            with replacing(folder / name) as temporary:
                picture.save(temporary, "png")
        save_png(self.before, folder / BEFORE, self.recipe_before)
        save_png(self.after, folder / AFTER, self.recipe)
        return folder / AFTER


def refuse_other_edit(folder: Path, before: Recipe, after: Recipe | None = None) -> None:
    """Checks that a folder holds no pictures of an edit but of this one, as far as it is known.

    Raises:
      UserError: it does.
    """
    for name, wanted in ((BEFORE, before), (AFTER, after)):
        if not (folder / name).exists() or wanted is None:
            continue
        try:
            same = recipe_fingerprint(load_recipe(folder / name)) == recipe_fingerprint(wanted)
        except UserError:
            same = False
        if not same:
            raise user_error(f"{folder / name} of another edit", "a new folder", "name another, or remove that one")
    if not (folder / BEFORE).exists():
        for name in (AFTER, DIFFERENCE, STRIP):
            if (folder / name).exists():
                raise user_error(f"{folder / name} of something else", "a new folder", "name another")
