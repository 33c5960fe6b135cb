"""Pictures of the studio for the README, from a running studio with the model emoji-tiny.

python -m kaleido_jax.main studio --port=7860
python docs/studio_pictures.py --url=http://127.0.0.1:7860 --out=docs/images

Needs playwright and a Chromium. Writes studio-light.png, studio-dark.png and studio-phone.png, in 256 colors.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
SEED = 12


def main() -> None:
    """Parses the flags and takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="of the running studio")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    flags = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        edited(open_page(browser, flags.url, DESKTOP, "light"), flags.out / "studio-light.png")
        modes(open_page(browser, flags.url, DESKTOP, "dark"), flags.out / "studio-dark.png")
        edited(open_page(browser, flags.url, PHONE, "light"), flags.out / "studio-phone.png")
        browser.close()


def open_page(browser: Browser, url: str, viewport: dict[str, int], scheme: str) -> Page:
    """A page with a fresh history and the seed of the pictures."""
    page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
    page.goto(url)
    page.wait_for_selector(".suggestion")
    put(page, "#seed", SEED)
    return page


def put(page: Page, selector: str, value: float) -> None:
    """Types a number."""
    page.fill(selector, str(value))
    page.dispatch_event(selector, "change")


def finish(page: Page) -> None:
    """Waits until nothing is drawn any more."""
    page.wait_for_selector("#generate:not([disabled])", timeout=180_000)


def edited(page: Page, path: Path) -> None:
    """Pictures of a caption, one with another word and an ellipse that was turned."""
    put(page, "#variations", 6)
    page.fill("#caption", "fruit")
    page.press("#caption", "Enter")
    finish(page)
    words = page.input_value("[data-segment=text] textarea")
    page.fill("[data-segment=text] textarea", f"{words.rpartition(' on ')[0]} on blue")
    page.press("[data-segment=text] textarea", "Enter")
    finish(page)
    page.focus("#handle-blob-0")
    for _ in range(4):
        page.keyboard.press("]")
    page.keyboard.press("Control+Enter")
    finish(page)
    page.evaluate("scrollTo(0, 0)")
    page.locator("#handle-blob-0").evaluate("one => one.focus({ preventScroll: true })")
    save(page, path)


def modes(page: Page, path: Path) -> None:
    """The modes of a caption, and the pictures of the largest."""
    page.click("#tab-modes")
    put(page, "#modes-count", 32)
    page.fill("#caption", "fruit")
    page.press("#caption", "Enter")
    finish(page)
    page.click(".group >> nth=0")
    finish(page)
    page.mouse.move(5, 5)
    save(page, path)


def save(page: Page, path: Path) -> None:
    """What the window shows."""
    page.wait_for_timeout(300)  # until colors have faded
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shot.quantize(256, kmeans=8, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
