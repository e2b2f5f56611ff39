"""A still of the page for README: reports/index.html -> docs/page.webp.

python docs/still.py          (needs Chromium)
"""

import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.goto((ROOT / "reports/index.html").as_uri())
    page.locator("#live-canvas").scroll_into_view_if_needed()
    page.wait_for_function("document.getElementById('live-canvas').dataset.count > 0")
    page.locator("#explorer-class label").nth(2).click()
    page.locator("#live-class-a").select_option("2")
    page.wait_for_timeout(1000)
    page.add_style_tag(content=".sections { position: static; }")  # the bar would cover the picture
    boxes = [page.locator(section).bounding_box() for section in ("#explorer", "#live")]
    top = boxes[0]["y"] + page.evaluate("window.scrollY")
    height = boxes[1]["y"] + boxes[1]["height"] - boxes[0]["y"]
    clip = {"x": 0, "y": top, "width": 1100, "height": height}
    picture = page.screenshot(full_page=True, clip=clip)
    browser.close()
Image.open(io.BytesIO(picture)).save(ROOT / "docs/page.webp", quality=88, method=6)
