"""The studio's page in a browser, against the server with the package's model."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.latents.segments.bbox import snap_box
from kaleido_jax.latents.segments.blob import snap_blob
from kaleido_jax.studio.server import STATIC

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -r requirements-dev.txt")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium"),
]

README = Path(__file__).parents[2] / "README.md"
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
JOB_MS, PAGE_MS = 600_000, 120_000  # the first pictures of a size are compiled
VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
window.shifts = 0;
new PerformanceObserver((list) => list.getEntries().forEach((entry) => { window.shifts += entry.value; }))
  .observe({ type: "layout-shift", buffered: true });
// On a busy machine a test may look for a line later than the page takes it away.
const later = window.setTimeout;
window.setTimeout = (run, ms, ...more) => later(run, ms === 8000 ? 600_000 : ms, ...more);
"""
# The first pictures that form stay, and the job goes on for the page, until window.end() is called.
HOLD = """
const { addEventListener } = EventSource.prototype;
const ended = new Promise((resolve) => { window.end = () => { window.over = true; resolve(); }; });
EventSource.prototype.addEventListener = function (name, handle) {
  const held = async (event) => {
    if (name === "progress" && window.forms && !window.over) return;
    window.forms = window.forms || name === "progress";
    if (name === "done") await ended;
    handle(event);
  };
  addEventListener.call(this, name, held);
};
"""


# ------------------------------------------------------------------------------------------------ server and browser
@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with (tmp_path_factory.mktemp("studio") / "log.txt").open("w+") as log:
        command = [sys.executable, "-m", "kaleido_jax.main", "studio", "--port=0"]
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield ready_url(server, log)
        finally:
            server.terminate()
            server.wait(120)


def ready_url(server, log, seconds=600):
    """The address that the studio says, once the model is compiled."""
    end = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < end:
        time.sleep(0.5)
        log.seek(0)
        if found := re.search(r"http://127.0.0.1:\d+", log.read()):
            with urllib.request.urlopen(f"{found[0]}/api/model", timeout=60) as answer:
                if not json.load(answer)["waiting"]:
                    return found[0]
    log.seek(0)
    return pytest.fail(f"the studio did not start:\n{log.read()[-3000:]}")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PAGE_MS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, url):
    """A function that opens the page in a fresh profile. At the end no page may have complained."""
    opened = []

    def open_it(viewport=DESKTOP, **options):
        context = browser.new_context(viewport=viewport, accept_downloads=True, **options)
        page = context.new_page()
        page.set_default_timeout(PAGE_MS)
        page.add_init_script(VIOLATIONS)
        page.complaints = []
        page.on("console", lambda message: message.type == "error" and page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(url)
        page.wait_for_selector(".suggestion")
        opened.append(page)
        return page

    yield open_it
    for page in opened:
        assert page.complaints == []
        assert page.evaluate("window.violations") == []
        page.context.close()


def generate(page, caption="fruit", variations=1, seed=7):
    set_number(page, "#variations", variations)
    if seed is not None:
        set_number(page, "#seed", seed)
    page.fill("#caption", caption)
    page.press("#caption", "Enter")
    finish(page)


def finish(page, bar="#action"):
    """Waits for the job that was just started."""
    page.wait_for_selector("#generate:not([disabled])", timeout=JOB_MS)
    page.wait_for_selector(f"{bar} .progress", state="hidden")


def set_number(page, selector, value):
    page.fill(selector, str(value))
    page.dispatch_event(selector, "change")


def redraw(page):
    page.click("#redraw")
    finish(page)


def saved(page):
    """The history as the browser keeps it."""
    return page.evaluate(
        "JSON.parse(Object.entries(localStorage).find(([k]) => /history:[^:]+:\\d+:\\w+$/.test(k))?.[1] ?? '[]')"
    )


def shown(page):
    """The node whose picture is shown."""
    name = page.evaluate("Object.entries(localStorage).find(([k]) => k.endsWith(':shown'))[1]")
    return next(node for node in saved(page) if node["id"] == name)


def latents_of(node):
    return node["recipe"]["rows"][0]["latents"]


def pixels(source):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGB"))


def numbers(page, segment, index=0):
    return [
        int(v)
        for v in page.eval_on_selector_all(
            f"[data-segment={segment}] .object:nth-child({index + 1}) .numbers input",
            "all => all.map((one) => one.value)",
        )
    ]


def on_picture(page, x, y):
    """Page coordinates of a point 0..1000."""
    box = page.locator("#picture").bounding_box()
    return box["x"] + x * box["width"] / 1000, box["y"] + y * box["height"] / 1000


def drag(page, start, end):
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, steps=4)
    page.mouse.move(*end, steps=4)
    page.mouse.up()


# --------------------------------------------------------------------------------------------------------- geometry
def test_the_page_snaps_as_the_server_does(open_page):
    page = open_page()
    rng = np.random.default_rng(0)
    corners = [sorted(rng.integers(0, 1001, 2).tolist()) for _ in range(400)]
    boxes = [
        [a[0], b[0], a[1], b[1]]
        for a, b in zip(corners[::2], corners[1::2], strict=True)
        if a[0] < a[1] and b[0] < b[1]
    ]
    blobs = [
        [*rng.integers(0, 1001, 2).tolist(), *sorted(rng.integers(1, 1001, 2).tolist())[::-1], int(rng.integers(180))]
        for _ in range(200)
    ]
    for step in (1, 10, 20):
        args = [boxes, blobs, step]
        found = page.evaluate(
            """async ([boxes, blobs, step]) => {
              const { snapBox, snapBlob } = await import("/static/geometry.js");
              return [boxes.map((box) => snapBox(box, step)), blobs.map((blob) => snapBlob(blob, step))];
            }""",
            args,
        )
        assert found[0] == [list(snap_box(tuple(box), step)) for box in boxes]
        assert found[1] == [list(snap_blob(tuple(blob), step)) for blob in blobs]


def test_an_ellipse_comes_back_from_any_rotation_of_its_handle(open_page):
    page = open_page()
    found = page.evaluate(
        """async () => {
          const { blobNear, snapBlob } = await import("/static/geometry.js");
          const wrong = [];
          for (let theta = 0; theta < 180; theta += 10) for (let rotation = -720; rotation <= 720; rotation += 7) {
            const blob = [330, 480, 250, 110, theta];
            const near = blobNear(blob, rotation);
            const back = snapBlob([near.x, near.y, near.radiusX, near.radiusY, near.rotation], 10);
            const same = String(back) === String(blob) && Math.abs(near.rotation - rotation) <= 45;
            if (!same) wrong.push([blob, rotation, near, back]);
          }
          return wrong;
        }"""
    )
    assert found == []


# ----------------------------------------------------------------------------------------------------------- pictures
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["1440", "390"])
def test_a_caption_becomes_pictures_before_the_eyes(open_page, viewport):
    page = open_page(viewport)
    page.evaluate(HOLD)
    set_number(page, "#setting-num_steps", 60)
    set_number(page, "#variations", 3)
    page.fill("#caption", "fruit")
    page.press("#caption", "Enter")
    page.wait_for_selector("#action .line:text-matches('^(Step|Picture)')", timeout=JOB_MS)
    assert page.get_attribute("#action .track", "aria-valuenow") is not None
    assert page.locator("#strip .tile").count() == 3
    assert page.get_attribute("#image", "src").startswith("data:image/png")
    early = page.get_attribute("#image", "src")
    before, scrolled = page.evaluate("[window.shifts, scrollY]")
    page.evaluate("window.end()")
    finish(page)
    assert page.get_attribute("#image", "src") != early
    assert page.evaluate("window.shifts") - before < 0.01
    assert [len(node["recipe"]["rows"]) for node in saved(page)] == [1] * 3
    assert page.input_value("[data-segment=text] textarea") == latents_of(shown(page))["text"]
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert page.evaluate("scrollY") == scrolled
    page.click("#strip .tile >> nth=2")
    assert shown(page)["place"] == 2


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["1440", "390"])
def test_a_box_is_dragged_and_redrawn_from_the_same_noise(open_page, viewport):
    page = open_page(viewport)
    generate(page)
    first = shown(page)
    page.click("#toolbar [data-name=blob]")  # the ellipse may lie over the corner
    x1, y1, x2, y2 = numbers(page, "bbox")
    page.locator("#picture").scroll_into_view_if_needed()
    middle = (x1 + x2) / 2, (y1 + y2) / 2
    dx = -x1 if x1 >= 100 else 1000 - x2
    drag(page, on_picture(page, *middle), on_picture(page, middle[0] + 2 * dx, middle[1]))
    assert numbers(page, "bbox") == [x1 + dx, y1, x2 + dx, y2]
    assert page.locator(".change-bar .chip").all_inner_texts() == ["Boxes"]
    redraw(page)
    edited = shown(page)
    assert edited["parent"] == first["id"]
    assert latents_of(edited)["bbox"][0]["box"] == [x1 + dx, y1, x2 + dx, y2]
    assert latents_of(edited)["text"] == latents_of(first)["text"]
    assert edited["recipe"]["history"][-1]["resampled"] == ["blob", "voken"]
    assert edited["recipe"]["seed"] == first["recipe"]["seed"]
    assert np.abs(pixels(edited["png"]).astype(int) - pixels(first["png"])).max() > 0


def test_corners_resize_and_the_handle_turns_an_ellipse(open_page):
    page = open_page()
    generate(page)
    page.click("#handle-bbox-0")
    x1, y1, x2, y2 = numbers(page, "bbox")
    drag(page, on_picture(page, x2, y2), on_picture(page, (x1 + x2) / 2, (y1 + y2) / 2))
    a1, b1, a2, b2 = numbers(page, "bbox")
    assert (a1, b1) == (x1, y1)
    assert abs(a2 - (x1 + x2) / 2) <= 10 and abs(b2 - (y1 + y2) / 2) <= 10

    # The short axis first becomes the shortest of all: one that is longer than the long one would turn the ellipse.
    for name, value in (("short", 10), ("long", 250), ("short", 120), ("x", 500), ("y", 500), ("angle", 30)):
        set_number(page, f"[aria-label='{name} of ellipse 1']", value)
    page.click("#handle-blob-0")
    place = page.evaluate("Konva.stages[0].findOne('Transformer').findOne('.rotater').getAbsolutePosition()")
    overlay = page.locator("#overlay").bounding_box()
    handle = np.array([overlay["x"] + place["x"], overlay["y"] + place["y"]])
    center = np.array(on_picture(page, 500, 500))
    turn = np.radians(50)
    turned = center + np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ (handle - center)
    drag(page, handle.tolist(), turned.tolist())
    assert numbers(page, "blob") == [500, 500, 250, 120, 80]
    redraw(page)
    assert latents_of(shown(page))["blob"][0]["blob"] == [500, 500, 250, 120, 80]


def test_a_changed_word_takes_along_what_no_longer_fits_unless_it_is_to_stay(open_page):
    page = open_page()
    generate(page)
    first = shown(page)
    text = "a large pineapple, center, upright, on blue"
    page.fill("[data-segment=text] textarea", f"  {text.replace(' ', '  ')}")
    page.press("[data-segment=text] textarea", "Enter")
    finish(page)
    followed = shown(page)
    assert page.evaluate("document.activeElement.matches('[data-segment=text] textarea')")
    assert latents_of(followed)["text"] == text
    assert latents_of(followed)["bbox"][0]["phrase"] == "pineapple"
    assert len(followed["messages"]) == 1 and "follow=" not in page.inner_text("#messages")
    page.click("#messages button:has-text('Keep them')")
    finish(page)
    kept = shown(page)
    assert kept["parent"] == followed["parent"]
    assert latents_of(kept) == latents_of(first) | {"text": text}
    assert "boxes contradict text" in page.inner_text("#messages").lower()
    page.click("#messages button:has-text('Let boxes follow')")
    finish(page)
    assert latents_of(shown(page))["bbox"] != latents_of(kept)["bbox"]
    page.select_option(".change-bar select", "false")
    page.fill("[data-segment=text] textarea", text.replace("pineapple", "banana"))
    redraw(page)
    assert shown(page)["recipe"]["history"][-1]["resampled"] == []


def test_locked_segments_stay_while_others_are_sampled_anew(open_page):
    page = open_page()
    generate(page)
    first = latents_of(shown(page))
    page.click("[data-segment=text] [aria-label='Lock text']")
    assert page.is_disabled("[data-segment=text] [aria-label='Sample text anew']")
    page.click("[data-segment=bbox] [aria-label='Sample boxes anew']")
    finish(page)
    second = shown(page)
    assert latents_of(second)["text"] == first["text"]
    assert second["recipe"]["history"][-1]["resampled"] == ["bbox", "blob", "voken"]
    # New samples keep it too.
    generate(page, variations=2, seed=8)
    assert [latents_of(node)["text"] for node in saved(page)[-2:]] == [first["text"]] * 2


def test_visual_tokens_are_replaced_and_exchanged(open_page):
    page = open_page()
    generate(page)
    vokens = latents_of(shown(page))["voken"]
    page.click(".voken .swatch >> nth=0")
    page.click(".voken .swatch >> nth=3")
    set_number(page, "[aria-label='Visual token 2']", 999)
    most = json.loads(page.evaluate("fetch('/api/model').then((answer) => answer.text())"))["codebook_size"] - 1
    redraw(page)
    assert latents_of(shown(page))["voken"] == [vokens[3], most, vokens[2], vokens[0]]


# ------------------------------------------------------------------------------------------------------- going back
def test_escape_cancels_and_loses_nothing(open_page):
    page = open_page()
    generate(page)
    first = shown(page)
    set_number(page, "#setting-num_steps", 1000)
    page.fill("[data-segment=text] textarea", "a small banana, top, upright, on pink")
    page.press("[data-segment=text] textarea", "Control+Enter")
    page.wait_for_selector("#action .line:text-matches('^(Step|Picture)')", timeout=JOB_MS)
    page.keyboard.press("Escape")
    page.wait_for_selector(".notice:has-text('Cancelled')")
    finish(page)
    assert [node["id"] for node in saved(page)] == [first["id"]]
    assert page.input_value("[data-segment=text] textarea") == "a small banana, top, upright, on pink"


def test_keys_of_an_input_method_are_its_own(open_page):
    page = open_page()
    generate(page)
    page.fill("[data-segment=text] textarea", "a small banana, top, upright, on pink")
    page.click("#handle-bbox-0")
    for composing in ({"isComposing": True}, {"keyCode": 229}):
        for key in ({"key": "Enter"}, {"key": "Enter", "ctrlKey": True}, {"key": "Escape"}):
            press = {"bubbles": True, "cancelable": True} | composing | key
            page.dispatch_event("[data-segment=text] textarea", "keydown", press)
            assert page.evaluate("import('/static/store.js').then(({ state }) => [state.job, state.selected])") == [
                None,
                {"segment": "bbox", "index": 0},
            ]
    page.press("[data-segment=text] textarea", "Enter")
    finish(page)
    assert len(saved(page)) == 2


def test_undo_walks_back_and_another_edit_branches(open_page):
    page = open_page()
    generate(page)
    first = shown(page)
    box = numbers(page, "bbox")
    page.focus("#handle-bbox-0")
    for _ in range(3):
        page.keyboard.press("Alt+ArrowLeft")
    edited_box = numbers(page, "bbox")
    assert edited_box == [*box[:2], box[2] - 30, box[3]]
    page.keyboard.press("Control+z")  # keys that follow each other are one step
    assert numbers(page, "bbox") == box
    page.keyboard.press("Control+Shift+z")
    assert numbers(page, "bbox") == edited_box
    redraw(page)
    second = shown(page)
    page.focus("#handle-bbox-0")
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert shown(page)["id"] == first["id"]
    assert numbers(page, "bbox") == box
    page.keyboard.press("Control+y")
    page.keyboard.press("Control+y")
    assert shown(page)["id"] == second["id"]
    page.click(f"[role=treeitem][data-key='{first['id']}']")
    set_number(page, "#setting-gamma", 2)
    redraw(page)
    third = shown(page)
    assert third["parent"] == first["id"] and third["recipe"]["sample"]["gamma"] == 2
    assert page.eval_on_selector_all("[role=treeitem]", "all => all.map((one) => one.ariaLevel)") == ["1", "2", "2"]


@pytest.mark.parametrize("resized", [False, True], ids=["dragged", "resized"])
def test_what_is_undone_or_removed_in_the_hand_leaves_it(open_page, resized):
    page = open_page()
    latents = "import('/static/store.js').then(({ state }) => state.draft.latents)"
    generate(page)
    page.click("#toolbar [data-name=blob]")  # the ellipse may lie over the corner
    box = x1, y1, x2, y2 = numbers(page, "bbox")
    start = on_picture(page, x2, y2) if resized else on_picture(page, (x1 + x2) / 2, (y1 + y2) / 2)
    for keys, left in ((["Control+z"], 1), (["Control+z"] * 9, None), (["Delete"], 0)):
        page.click("[role=treeitem]")
        page.click("#handle-bbox-0")
        page.mouse.move(*start)
        page.mouse.down()
        page.mouse.move(start[0] - 40, start[1] - 40, steps=4)
        assert numbers(page, "bbox") != list(box)
        page.focus("#handle-bbox-0")
        for key in keys:
            page.keyboard.press(key)
        after = page.evaluate(latents)
        assert left is None if after is None else len(after["bbox"]) == left
        page.mouse.move(start[0] - 80, start[1] - 80, steps=4)
        page.mouse.up()
        assert page.evaluate(latents) == after
        assert page.evaluate("Konva.stages[0].find((one) => one.name().startsWith('bbox')).length") == (left or 0)
        if left:
            assert numbers(page, "bbox") == list(box)
    page.click("[role=treeitem]")
    page.click("#handle-bbox-0")
    drag(page, start, (start[0] - 40, start[1] - 40))
    assert numbers(page, "bbox") != list(box)


def test_the_edit_is_compared_with_the_picture_before(open_page):
    page = open_page()
    generate(page)
    first = shown(page)
    assert page.is_disabled("#toolbar [data-name=slider]")
    set_number(page, "#setting-gamma", 1)
    redraw(page)
    page.click("#toolbar [data-name=sides]")
    before, after, difference = page.eval_on_selector_all("#sides img", "all => all.map((one) => one.src)")
    assert (pixels(before) == pixels(first["png"])).all()
    assert (pixels(after) == pixels(shown(page)["png"])).all()
    assert (pixels(difference) > 0).any() == (pixels(before) != pixels(after)).any()
    page.click("#toolbar [data-name=slider]")
    page.focus("#slider input")
    page.keyboard.press("End")
    assert page.eval_on_selector("#slider img:nth-of-type(2)", "one => one.style.clipPath") == "inset(0px 0% 0px 0px)"


# ------------------------------------------------------------------------------------------------- saving and loading
def test_history_survives_a_reload_and_a_saved_picture_is_dropped_back(open_page, tmp_path):
    page = open_page()
    generate(page, variations=2)
    set_number(page, "#setting-gamma", 2)
    redraw(page)
    node = shown(page)
    with page.expect_download() as download:
        page.click("#save-picture")
    download.value.save_as(tmp_path / "saved.png")
    assert re.fullmatch(r"fruit-seed7-1-edit1\.png", download.value.suggested_filename)
    with page.expect_download() as download:
        page.click("#save-recipe")
    download.value.save_as(tmp_path / "saved.json")
    assert json.loads((tmp_path / "saved.json").read_text()) == node["recipe"]
    page.reload()
    page.wait_for_selector("[role=treeitem]")
    assert page.locator("[role=treeitem]").count() == 3
    assert page.get_attribute("#image", "src") == node["png"]

    elsewhere = open_page()
    for name in ("saved.png", "saved.json"):
        drop_file(elsewhere, tmp_path / name)
        finish(elsewhere)
        elsewhere.wait_for_selector(".notice:has-text('bit for bit')")
        assert (pixels(shown(elsewhere)["png"]) == pixels(node["png"])).all()
    assert elsewhere.locator("[role=treeitem]").count() == 2


def drop_file(page, path):
    transfer = page.evaluate_handle(
        """([content, name]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name));
          return transfer;
        }""",
        [base64.b64encode(path.read_bytes()).decode(), path.name],
    )
    page.dispatch_event("body", "dragover", {"dataTransfer": transfer})
    assert page.is_visible("#drop")
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    page.wait_for_selector("#generate[disabled], .notice")


@pytest.fixture
def open_tab(browser):
    """A function that opens a tab with nothing but the history of a model: a step and the digits of the weights."""
    context = browser.new_context()
    context.set_default_timeout(PAGE_MS)
    types = {"": "text/html", ".js": "text/javascript"}

    def answer(route):
        name = route.request.url.rpartition("/")[2]
        body = (STATIC / name).read_text() if name else "<!doctype html>"
        route.fulfill(body=body, content_type=types[Path(name).suffix])

    context.route("http://studio.test/**", answer)

    def open_it(step=1000, weights="a" * 16):
        page = context.new_page()
        page.goto("http://studio.test/")
        page.evaluate(
            """async ([step, weights]) => {
              window.store = (await import("/store.js")).state;
              window.kept = await import("/history.js");
              window.restored = window.kept.restore({ name: "birds", step, weights });
            }""",
            [step, weights],
        )
        return page

    yield open_it
    context.close()


def add(tab, *names, characters=10, parent=None):
    """Adds pictures one by one; a `parent` is that of the first, and of each later one the one before it."""
    tab.evaluate(
        """([names, characters, parent]) => {
          for (const id of names) {
            const png = `data:image/png;base64,${id}${"A".repeat(characters)}`;
            window.kept.add([{ id, parent, png, recipe: { rows: [{ caption: id }], history: [] } }], id);
            window.store.node = id;
            if (parent) parent = id;
          }
        }""",
        [names, characters, parent],
    )


def names_in(tab):
    return tab.evaluate("window.kept.all().map((node) => node.id)")


def test_tabs_share_one_history_and_follow_each_other(open_tab):
    one, two = open_tab(), open_tab()
    add(one, "one-1")
    two.wait_for_function("window.kept.all().length === 1")
    add(two, "two-1")
    one.wait_for_function("window.kept.all().length === 2")
    again = open_tab()
    assert names_in(one) == names_in(two) == names_in(again) == ["one-1", "two-1"]
    assert again.evaluate("window.restored") == "two-1"
    assert names_in(open_tab(weights="b" * 16)) == names_in(open_tab(step=2000)) == []
    one.evaluate("window.kept.clear()")
    again.wait_for_function("window.kept.all().length === 0")
    two.wait_for_function("window.kept.all().length === 1")
    assert names_in(two) == ["two-1"]  # which it shows
    add(two, "two-2")
    assert names_in(two) == names_in(open_tab()) == ["two-2"]


def test_a_tab_comes_back_to_its_own_picture_and_a_new_one_begins_with_the_last(open_tab):
    one = open_tab()
    add(one, "one-1")
    two = open_tab()
    add(two, "two-1")
    one.wait_for_function("window.kept.all().length === 2")
    assert restored(one) == "one-1" and restored(two) == "two-1" == restored(open_tab())
    one.evaluate("window.kept.saveShown('two-1')")
    two.evaluate("window.kept.saveShown('one-1')")
    assert restored(one) == "two-1" and restored(two) == "one-1" == restored(open_tab())
    two.evaluate("sessionStorage.clear()")
    one.evaluate("window.kept.saveShown('gone')")
    assert restored(two) == "two-1"  # the youngest, where neither is there


def restored(tab):
    """The picture that a tab would show after a reload."""
    return tab.evaluate("window.kept.restore({ name: 'birds', step: 1000, weights: 'a'.repeat(16) })")


def test_what_the_history_drops_is_told_and_no_picture_goes_before_its_edits(open_tab):
    tab = open_tab()
    add(tab, "root")
    add(tab, "edit", parent="root")
    others = [f"other {i}" for i in range(60)]
    add(tab, *others[:58])
    assert names_in(tab) == ["root", "edit", *others[:58]] and notices_in(tab) == []
    add(tab, others[58])
    assert names_in(tab) == names_in(open_tab()) == ["root", *others[:59]]
    assert notices_in(tab) == ["The history keeps at most 60 pictures (4 MB): an older one was removed."]
    add(tab, others[59])
    assert names_in(tab) == others
    add(tab, "large", characters=3_999_900)
    assert names_in(tab) == ["large"]
    assert notices_in(tab)[-1] == "The history keeps at most 60 pictures (4 MB): 60 older ones were removed."


def test_a_chain_of_edits_that_loses_its_beginning_can_still_be_compared(open_tab):
    tab = open_tab()
    add(tab, *(f"edit {i}" for i in range(61)), parent="gone")
    first = tab.evaluate("window.kept.all()[0]")
    assert first["id"] == "edit 1" and "edit 0" in first["before"] and len(names_in(tab)) == 60


def notices_in(tab):
    return tab.evaluate("window.store.notices.map((one) => one.text)")


def test_the_page_and_the_readme_name_the_bound_of_the_history():
    (most,) = re.findall(r"MOST_NODES = (\d+);", (STATIC / "history.js").read_text())
    for text in ((STATIC / "index.html").read_text(), README.read_text()):
        assert f"last {most} pictures (up to 4 MB) stay" in " ".join(text.split())


def test_a_full_storage_loses_the_oldest_other_histories_first(open_tab):
    for step in (1000, 2000, 3000):
        names = [f"{step}-{i}" for i in range(50)]
        add(open_tab(step), *names, characters=40_000)  # of some 5.2 million that a site may store
        assert names_in(open_tab(step)) == names
    assert len(names_in(open_tab(2000))) == 50 and names_in(open_tab(1000)) == []


def test_a_file_without_a_recipe_is_refused_in_one_line(open_page, tmp_path):
    page = open_page()
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    drop_file(page, tmp_path / "plain.png")
    assert page.locator(".notice.error").count() == 1
    assert page.inner_text(".notice.error").startswith("The file holds no recipe")
    page.complaints.clear()  # the browser logs each 422


def test_characters_that_the_vocabulary_lacks_are_noticed(open_page):
    page = open_page()
    set_number(page, "#setting-num_steps", 1)
    generate(page, "\N{RED APPLE}")
    assert "the vocabulary has no '\N{RED APPLE}'; read as <unk>" in page.inner_text(".notice")


def test_a_full_storage_keeps_the_page_working(open_page):
    page = open_page()
    page.evaluate(
        """() => {
          for (let size = 1 << 20; size > 100; ) {
            try { localStorage.setItem(`x${size}${Math.random()}`, "x".repeat(size)); } catch { size >>= 1; }
          }
        }"""
    )
    generate(page)
    assert page.get_attribute("#image", "src").startswith("data:image/png")
    assert "stores only a part" in page.inner_text("#notices")


def test_text_is_never_html(open_page):
    page = open_page()
    generate(page)
    hostile = "<img src=x onerror=alert(1)> <b>fruit</b>"
    page.fill("#caption", hostile)
    page.fill("[data-segment=bbox] .phrase", hostile)
    page.fill("[data-segment=text] textarea", hostile)
    redraw(page)
    assert page.locator(".notice.error").count() == 1
    page.complaints.clear()
    elements = page.evaluate("document.querySelectorAll('b, img[src=x]').length")
    assert elements == 0


def test_a_busy_server_is_told_in_one_line(open_page):
    page = open_page()
    generate(page)
    line = "the studio is busy; expected fewer jobs; try again in a few seconds"
    page.route("**/api/edit", lambda route: route.fulfill(status=503, json={"message": line}))
    set_number(page, "#setting-gamma", 9)
    redraw(page)
    assert page.inner_text(".notice.error") == line.capitalize()
    assert page.input_value("#setting-gamma") == "9"
    page.complaints.clear()


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["1440", "390"])
def test_a_server_with_another_model_is_told_and_what_was_typed_survives_the_reload(open_page, viewport):
    page = open_page(viewport)
    answer = page.evaluate("fetch('/api/model').then((answer) => answer.json())")
    page.route("**/api/model", lambda route: route.fulfill(json=answer | {"name": "old", "weights": "b" * 16}))
    page.reload()
    page.wait_for_selector("#model:has-text('old')", state="attached")
    set_number(page, "#setting-gamma", 2)
    generate(page, "a fruit that I like", variations=3)
    page.wait_for_selector(".notice.error:has-text('The server has another model now (emoji-tiny, step')")
    assert saved(page) == []
    page.click("#tab-modes")
    page.unroute("**/api/model")
    page.click(".notice button:has-text('Reload')")
    page.wait_for_selector("#model:has-text('emoji-tiny')", state="attached")
    page.wait_for_selector(".suggestion")
    values = [page.input_value(name) for name in ("#caption", "#setting-gamma", "#seed", "#variations")]
    assert values == ["a fruit that I like", "2", "7", "3"] and page.is_visible("#modes")
    page.complaints.clear()  # the browser logs each 409


def test_a_lost_server_loses_nothing(open_page):
    page = open_page()
    generate(page)
    page.route("**/api/edit", lambda route: route.abort())
    page.fill("[data-segment=text] textarea", "a small banana, top, upright, on pink")
    redraw(page)
    assert "does not answer" in page.inner_text(".notice.error")
    assert page.input_value("[data-segment=text] textarea") == "a small banana, top, upright, on pink"
    page.complaints.clear()


def test_the_page_takes_a_caption_before_the_model_is_loaded(browser, url):
    page = browser.new_page()
    page.set_default_timeout(PAGE_MS)
    loading = {"waiting": "loading the model", "problem": "", "limits": {}, "ready": False}
    page.route("**/api/model", lambda route: route.fulfill(json=loading))
    page.goto(url)
    page.wait_for_selector("#waiting:has-text('Loading the model')")
    page.fill("#caption", "bird")
    page.press("#caption", "Enter")
    page.unroute("**/api/model")
    page.wait_for_selector("#strip .tile img:not([hidden]) >> nth=3", timeout=JOB_MS)
    finish(page)
    assert [node["recipe"]["rows"][0]["caption"] for node in saved(page)] == ["bird"] * 4
    page.close()


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["1440", "390"])
def test_a_baseline_that_cannot_be_loaded_is_told(open_page, viewport):
    page = open_page(viewport)
    answer = page.evaluate("fetch('/api/model').then((answer) => answer.json())")
    lines = [
        "",
        "no baseline: runs/of-a-very-long-name-without-any-space/baseline without config.json; expected a model",
    ]
    about = [answer | {"baseline": None, "baseline_problem": line, "waiting": "x" * (not line)} for line in lines]
    page.route("**/api/model", lambda route: route.fulfill(json=about.pop(0) if len(about) > 1 else about[0]))
    page.reload()
    page.wait_for_selector(".notice.error:has-text('No baseline: runs/')")
    page.click("[aria-label=Dismiss]")
    page.click("#tab-modes")
    assert page.inner_text("#no-baseline").startswith("No baseline: runs/")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


# ------------------------------------------------------------------------------------------------------- other views
def test_modes_are_grouped_and_each_is_one_click_from_its_pictures(open_page):
    page = open_page()
    page.click("#tab-modes")
    set_number(page, "#modes-count", 8)
    set_number(page, "#seed", 3)
    page.fill("#caption", "fruit")
    page.press("#caption", "Enter")
    finish(page, "#modes-progress")
    counts = [
        int(re.search(r": (\d+) of 8", one)[1])
        for one in page.eval_on_selector_all(".group", "all => all.map((one) => one.ariaLabel)")
    ]
    assert sum(counts) == 8 and counts == sorted(counts, reverse=True)
    assert page.locator("#baseline-pictures img").count() == 8
    page.click(".group >> nth=0")
    finish(page, "#modes-progress")
    assert page.locator("#group-pictures img").count() == counts[0]
    label = page.inner_text("#group-title")

    page.reload()
    page.wait_for_selector("#group-pictures img:not([hidden])")
    assert page.is_visible("#modes") and page.inner_text("#group-title") == label
    assert page.locator(".group").count() == len(counts)
    assert [page.locator(f"#{name}-pictures img").count() for name in ("group", "baseline")] == [counts[0], 8]
    assert (page.input_value("#caption"), page.input_value("#seed")) == ("fruit", "3")
    page.click("#group-pictures .tile >> nth=0")
    assert label in latents_of(shown(page))["text"]


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["1440", "390"])
def test_while_a_mode_is_drawn_the_studio_shows_its_own_latents_and_a_way_to_cancel(open_page, viewport):
    page = open_page(viewport)
    generate(page)
    text = latents_of(shown(page))["text"]
    page.click("#tab-modes")
    set_number(page, "#modes-count", 1)
    page.fill("#caption", "bird")
    page.press("#caption", "Enter")
    finish(page, "#modes-progress")
    page.evaluate("import('/static/store.js').then(({ state }) => { state.modes.settings.num_steps = 1000; })")
    page.click(".group >> nth=0")
    page.wait_for_selector("#modes-progress .line:text-matches('^Step')", timeout=JOB_MS)
    page.click("#tab-studio")
    assert page.input_value("[data-segment=text] textarea") == text == page.get_attribute("#image", "alt")
    assert page.inner_text("#action .title").startswith("Drawing") and page.is_hidden(".change-bar")
    page.click("#action .cancel")
    page.wait_for_selector(".notice:has-text('Cancelled')")
    finish(page)
    assert page.is_visible(".change-bar")


def test_modes_of_other_weights_are_not_restored_and_those_that_do_not_fit_go_without_pictures(open_page):
    page = open_page()
    page.click("#tab-modes")
    set_number(page, "#modes-count", 2)
    page.fill("#caption", "fruit")
    page.evaluate(
        """() => {
          const setItem = Storage.prototype.setItem;
          Storage.prototype.setItem = function (key, text) {
            const isLarge = key === "kaleido-studio-modes" && text.includes("data:image");
            if (isLarge) throw new DOMException("full", "QuotaExceededError");
            return setItem.call(this, key, text);
          };
        }"""
    )
    page.press("#caption", "Enter")
    finish(page, "#modes-progress")
    page.click(".group >> nth=0")
    finish(page, "#modes-progress")
    page.reload()
    page.wait_for_selector(".group")
    assert page.is_visible("#modes") and page.locator("#group-pictures img").count() == 0
    page.click(".group >> nth=0")
    finish(page, "#modes-progress")
    page.wait_for_selector("#group-pictures img:not([hidden])")
    page.evaluate("""() => sessionStorage.setItem("kaleido-studio-modes", '{"weights": "others", "view": "modes"}')""")
    page.reload()
    page.wait_for_selector("#studio:not([hidden])")
    assert page.locator(".group").count() == 0


def test_a_model_without_latents_says_that_it_has_no_modes(open_page):
    page = open_page()
    answer = page.evaluate("fetch('/api/model').then((answer) => answer.json())")
    page.route("**/api/model", lambda route: route.fulfill(json=answer | {"segments": []}))
    page.reload()
    page.wait_for_selector(".suggestion")
    page.click("#tab-modes")
    assert "without latents" in page.inner_text("#no-modes") and page.is_disabled("#generate")
    page.fill("#caption", "fruit")
    page.press("#caption", "Enter")
    page.click("#tab-studio")
    assert page.is_enabled("#generate")


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["1440", "390"])
def test_everything_is_reached_by_keys_alone(open_page, viewport):
    page = open_page(viewport)
    tab_to(page, "#caption")
    page.keyboard.type("fruit")
    page.keyboard.press("Enter")
    finish(page)
    box = numbers(page, "bbox")
    tab_to(page, "#handle-bbox-0")
    assert page.evaluate("document.activeElement.matches(':focus-visible')")
    page.keyboard.press("Alt+Shift+ArrowLeft")
    assert numbers(page, "bbox") == [*box[:2], box[2] - 50, box[3]]
    tab_to(page, "#handle-blob-0")
    theta = numbers(page, "blob")[4]
    page.keyboard.press("]")
    assert numbers(page, "blob")[4] == (theta + 10) % 180
    page.keyboard.press("Control+Enter")
    finish(page)
    assert len(saved(page)) == 5
    tab_to(page, "[role=treeitem]")
    page.keyboard.press("ArrowLeft")
    assert shown(page)["parent"] is None
    tab_to(page, "#tab-studio")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#modes")


def tab_to(page, selector, most=120):
    for _ in range(most):
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"{selector} is not in the tab order")


def test_every_control_has_a_name_and_text_is_readable_in_both_themes(open_page):
    for scheme in ("light", "dark"):
        page = open_page(color_scheme=scheme)
        generate(page)
        assert page.evaluate(NAMELESS) == []
        assert page.evaluate(PALE) == []


NAMELESS = """() => [...document.querySelectorAll("button, input, select, textarea, [role=treeitem]")]
  .filter((one) => !(one.ariaLabel || one.textContent.trim() || one.labels?.length)).map((one) => one.outerHTML)"""
# Pairs of our colors whose contrast is below 4.5 (WCAG AA).
PALE = """() => {
  const style = getComputedStyle(document.documentElement);
  const channel = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = (name) => {
    const hex = style.getPropertyValue(name).trim();
    const [r, g, b] = [1, 3, 5].map((i) => channel(parseInt(hex.slice(i, i + 2), 16)));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const pairs = [["--ink", "--page"], ["--soft", "--page"], ["--soft", "--surface"], ["--soft", "--sunken"],
    ["--accent-ink", "--accent"], ["--accent", "--accent-soft"], ["--warm", "--warm-soft"], ["--bad", "--bad-soft"]];
  return pairs.filter(([a, b]) => {
    const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05) < 4.5;
  });
}"""
