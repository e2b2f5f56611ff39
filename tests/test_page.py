"""The page, in a browser: its numbers, its images, its generator, and whether everybody can use it."""

import json
import math
import shutil
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright
from project import Project, ran

from gat.release.pipeline import GATPipeline
from gat.study.results import Results

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """The page of a project, opened from disk, with everything in it that went wrong."""

    def __init__(self, browser: Browser, project: Project, **options) -> None:
        self.page: Page = browser.new_context(**options).new_page()
        self.problems: list[str] = []
        self.page.on("console", self.note)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.problems.append(dialog.message), dialog.dismiss()))
        self.page.on("requestfailed", lambda request: self.problems.append(request.url[:200]))
        address = (project.folder / "reports/index.html").as_uri()

        def check(request) -> None:
            if request.url != address and not request.url.startswith(("data:", "blob:")):
                self.problems.append(request.url)

        self.page.on("request", check)
        self.page.goto(address)

    def note(self, message: ConsoleMessage) -> None:
        if "willReadFrequently" not in message.text:  # of these tests' own reading of pixels
            self.problems.append(f"{message.type}: {message.text}")

    def see_all(self) -> "Opened":
        """Scroll through it, as a reader does, until everything is drawn."""
        for part in self.page.locator("section").all():
            part.scroll_into_view_if_needed()
            self.page.wait_for_timeout(150)
        for plot in self.page.locator(".plot").all():
            plot.scroll_into_view_if_needed()
            plot.locator("svg.main-svg").first.wait_for()
        return self


@pytest.fixture(scope="module")
def opened(browser, finished) -> Iterator[Opened]:
    opened = Opened(browser, finished, viewport={"width": 1280, "height": 900}).see_all()
    yield opened
    assert opened.problems == []  # after all that the tests did with it
    opened.page.context.close()


def pixels(page: Page, selector: str) -> np.ndarray:
    """The pixels of a canvas, uint8 (H, W, 3)."""
    width, height, values = page.evaluate(
        """selector => {
            const canvas = document.querySelector(selector);
            const {width, height} = canvas;
            return [width, height, Array.from(canvas.getContext("2d").getImageData(0, 0, width, height).data)];
        }""",
        selector,
    )
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]


def image(finished: Project, run: str, label: int, seed: int, **options: float) -> np.ndarray:
    pipeline = GATPipeline.from_pretrained(finished.folder / f"runs/{run}/seed-0/pipeline")
    return np.asarray(pipeline(label, generator=torch.Generator().manual_seed(seed), **options).images[0])


def hover(page: Page, plot: str, trace: str, wanted: str) -> str:
    """The text that appears over the first point of the first trace of some name, once `wanted` is part of it."""
    page.locator(plot).scroll_into_view_if_needed()
    x, y = page.evaluate(
        """([plot, name]) => {
            const element = document.querySelector(plot);
            const trace = element.data.find((trace) => trace.name === name);
            const {xaxis, yaxis} = element._fullLayout;
            const box = element.getBoundingClientRect();
            const left = box.left + xaxis._offset, top = box.top + yaxis._offset;
            return [left + xaxis.d2p(trace.x[0]), top + yaxis.d2p(trace.y[0])];
        }""",
        [plot, trace],
    )
    page.mouse.move(x + 30, y + 30)
    page.mouse.move(x, y, steps=4)
    label = page.locator(f"{plot} .hoverlayer .hovertext", has_text=wanted)
    label.wait_for()
    return label.text_content()


def test_nothing_goes_wrong_and_nothing_is_fetched(opened):
    assert opened.problems == []
    assert "mnist5k" in opened.page.locator("h1").inner_text()


def test_hover_has_the_tables_numbers(opened, finished):
    table = pd.read_csv(finished.folder / "reports/scaling.csv")
    own = table[(table.run == "S-2") & (table.seed == 0)].iloc[0]
    shown = hover(opened.page, "#scaling-plot", "S-2", "S-2, seed 0")
    assert f"FID {float(f'{own.fid:.4g}'):g}" in shown
    assert f"{float(f'{2 * own.gmacs:.4g}'):g}" in shown
    opened.page.locator("#cost label", has_text="training").click()
    shown = hover(opened.page, "#scaling-plot", "S-2", "training GMACs")
    assert f"{float(f'{own.training_gmacs:.4g}'):g} training GMACs" in shown
    opened.page.locator("#cost label", has_text="generator").click()
    curves = Results(finished.folder / "results/B-2/seed-0").curves()
    opened.page.locator("#metric").select_option(label="generator loss")
    drawn = opened.page.evaluate(
        "document.querySelector('#training-plot').data.filter((t) => t.legendgroup === 'B-2')[0].y"
    )
    assert drawn == pytest.approx(curves["loss_g"][:, 1].tolist())


def test_the_law_is_that_of_the_report(opened, finished):
    text, report = opened.page.locator("#law").inner_text(), (finished.folder / "reports/scaling.md").read_text()
    assert "FID ≈" in text
    assert text in report


@pytest.mark.parametrize(("option", "value", "place"), [("truncation_psi", 1.0, 1), ("guidance_scale", 2.0, 1)])
def test_the_explorer_shows_the_pipelines_own_images(option, value, place, opened, finished):
    page = opened.page
    page.locator("#explorer").scroll_into_view_if_needed()
    for label, at, want in ((7, place, {option: value}), (3, 0, {})):
        page.locator("#explorer-class label", has_text=str(label)).click()
        page.locator(f"#explorer-sweep input[value={option}]").dispatch_event("click")
        page.locator("#explorer-value").fill(str(at))
        shown = page.locator("#explorer-shown").inner_text().split("= ")[1]
        setting = f"{label} {option}={shown}"
        for run in ("S-2", "B-2", "B-4"):
            page.wait_for_function(
                "([id, shown]) => document.getElementById(id).dataset.shown === shown", arg=[f"explorer-{run}", setting]
            )
            row = pixels(page, f"#explorer-{run}")
            side = row.shape[0]
            for seed in (0, 1):
                tile = row[:, seed * side : (seed + 1) * side]
                assert np.array_equal(tile, image(finished, run, label, seed, **want)), (run, seed)


def test_the_generator_in_the_page_makes_the_pipelines_images(opened, finished):
    page = opened.page
    page.locator("#live-canvas").scroll_into_view_if_needed()
    page.wait_for_function("document.getElementById('live-canvas').dataset.count > 0", timeout=60_000)
    run = json.loads(page.locator("#content").text_content())["live"]["run"]

    def compare(selector: str, value: str, label: int, seed: int, **options: float) -> None:
        count = page.evaluate("document.getElementById('live-canvas').dataset.count")
        control = page.locator(selector)
        control.select_option(value) if "class" in selector else control.fill(value)
        page.wait_for_function(f"document.getElementById('live-canvas').dataset.count > {count}")
        page.wait_for_timeout(200)
        error = pixels(page, "#live-canvas").astype(float) - image(finished, run, label, seed, **options)
        mean_square = np.square(error).mean()
        assert mean_square == 0 or 20 * math.log10(255 / mean_square**0.5) > 40

    compare("#live-class-a", "5", 5, 0)
    compare("#live-seed-a", "63", 5, 63)
    compare("#live-psi", "0.5", 5, 63, truncation_psi=0.5)
    compare("#live-mix", "1", 1, 1, truncation_psi=0.5)
    before = pixels(page, "#live-canvas")
    page.locator("#live-new-b").click()
    page.wait_for_timeout(500)
    assert not np.array_equal(before, pixels(page, "#live-canvas"))


def test_pictures_load_and_videos_play(opened):
    page = opened.page
    for run in ("S-2", "B-2"):
        page.locator("#inside-run label", has_text=run).click()
        page.wait_for_function(
            """() => {
                const video = document.getElementById("walk");
                const loaded = (id) => document.getElementById(id).naturalWidth > 0;
                return loaded("levels") && loaded("neighbours") && video.readyState >= 2 && video.currentTime > 0.1;
            }"""
        )
        assert run in page.locator("#levels").get_attribute("alt")


def test_the_table_sorts_by_its_headings(opened):
    page, column = opened.page, 'th[data-key="fid"]'

    def fids() -> list[float]:
        place = page.locator(column).evaluate("cell => [...cell.parentNode.children].indexOf(cell)")
        cells = page.locator(f"#trainings tbody td:nth-child({place + 1})").all_inner_texts()
        return [float(cell) for cell in cells]

    page.locator(f"{column} button").focus()
    page.keyboard.press("Enter")
    assert fids() == sorted(fids())
    page.keyboard.press("Enter")
    assert fids() == sorted(fids(), reverse=True)
    assert page.locator(column).get_attribute("aria-sort") == "descending"


def test_claims_analyses_commands_and_settings_are_there(opened, finished):
    assert "Noise is better than resized images" in opened.page.locator("#claims").inner_text()
    assert "change when skipped" in opened.page.locator("#analyses").inner_text()
    opened.page.locator("#made-training").select_option(label="B-4, seed 0")
    text = opened.page.locator("#made-settings").inner_text()
    assert text.startswith("dvc repro evaluate@B-4-0")
    assert "patch: 4" in text
    commits = finished.type("git", "log", "--format=%H").stdout.split()
    assert any(commit in opened.page.locator("#made").inner_text() for commit in commits)


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_axe_finds_nothing_serious_and_nothing_overflows(width, scheme, browser, finished):
    opened = Opened(browser, finished, viewport={"width": width, "height": 800}, color_scheme=scheme).see_all()
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground, ink = page.evaluate(
        "(({backgroundColor, color}) => [backgroundColor, color])(getComputedStyle(document.body))"
    )
    shade = [sum(map(int, value[4:-1].split(","))) for value in (ground, ink)]
    assert (shade[0] < shade[1]) == (scheme == "dark")
    text = page.locator("#scaling-plot .xtitle").evaluate("element => getComputedStyle(element).fill")
    assert text == ink
    findings = [f for f in Axe().run(page).response["violations"] if f["impact"] in ("serious", "critical")]
    assert findings == [], [(f["id"], [node["html"][:150] for node in f["nodes"]]) for f in findings]
    assert opened.problems == []
    page.context.close()


def test_the_keyboard_is_enough(browser, finished):
    opened = Opened(browser, finished)
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
    explorer = {"explorer-class", "explorer-sweep", "explorer-value"}
    assert {"cost", "metric", *explorer, "live-mix", "live-play", "inside-run"} <= set(reached)
    page.locator("#explorer-class input").first.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.getElementById('explorer-S-2').dataset.shown?.startsWith('1 ')")
    page.locator("#explorer-value").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.getElementById('explorer-S-2').dataset.shown === '1 truncation_psi=1'")
    page.context.close()


def test_names_of_classes_are_text(browser, finished, tmp_path):
    project = finished.duplicate(tmp_path / "p")
    for path in (project.folder / "showcase").glob("*/showcase.json"):
        shown = json.loads(path.read_text())
        for names in (shown["names"], shown["all_names"]):
            names[3] = EVIL
        path.unlink()  # a link into DVC's cache
        path.write_text(json.dumps(shown))
    project.set("data.source", f"{tmp_path}/{EVIL.replace('/', '')}")
    (tmp_path / EVIL.replace("/", "")).mkdir()
    project.type("python", "-m", "stages", "report")
    opened = Opened(browser, project).see_all()
    assert EVIL in opened.page.locator("#explorer-class").inner_text()
    opened.page.locator("#explorer-class label", has_text="alert").click()
    opened.page.wait_for_function("document.getElementById('explorer-S-2').dataset.shown?.startsWith('3 ')")
    assert EVIL in opened.page.locator("#explorer-S-2").get_attribute("aria-label")
    assert "alert" in opened.page.locator("h1").inner_text()
    assert opened.problems == []
    opened.page.context.close()


def test_a_changed_template_redraws_the_report_alone(finished, tmp_path):
    project = finished.duplicate(tmp_path / "p")
    with (project.folder / "gat/report/template/page.html").open("a") as file:
        file.write("<!-- changed -->\n")
    assert project.would_run() == ["report"]
    assert ran(project.type("dvc", "repro").stdout) == ["report"]
    assert "<!-- changed -->" in (project.folder / "reports/index.html").read_text()
