"""The series as a student meets it: JupyterLab in a real browser. Run by `make browse`."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import numpy as np
import pytest

from oasis_helpers.data import REPOSITORY

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.browser
BUILD = REPOSITORY / "build"
SCREENSHOTS = BUILD / "screenshots"
MINUTE = 60_000  # milliseconds, Playwright's unit

FINISHED = """count => {
    const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")];
    const ran = prompts.filter(prompt => /^\\[\\d+\\]:$/.test(prompt.textContent.trim()));
    const status = document.querySelector(".jp-Notebook-ExecutionIndicator").dataset.status;
    const outputs = [...document.querySelectorAll(".jp-OutputArea-output")];
    const failed = outputs.some(output => output.textContent.includes("Traceback (most recent"));
    return failed || (ran.length === count && status === "idle");
}"""

# A bar may come and go between two looks at the page.
WATCH = """mark => {
    window.progress = [];
    new MutationObserver(() => {
        for (const { textContent: text } of document.querySelectorAll(".widget-hbox"))
            if (text.includes(mark) && text.includes("%")) window.progress.push(text);
    }).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""

# From the click's arrival in the page to the frame that shows the new picture.
CLOCK = """() => {
    const picture = [...document.querySelectorAll("img.jupyter-widgets")].at(-1);
    window.clicks = [];
    let clicked;
    document.addEventListener("click", () => { clicked = performance.now(); }, true);
    new MutationObserver(async () => {
        await picture.decode();
        requestAnimationFrame(() => window.clicks.push(performance.now() - clicked));
    }).observe(picture, { attributeFilter: ["src"] });
}"""

PIXELS = """async () => {
    const picture = [...document.querySelectorAll("img.jupyter-widgets")].at(-1);
    await picture.decode();
    const canvas = new OffscreenCanvas(picture.naturalWidth, picture.naturalHeight);
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    return context.getImageData(0, 0, canvas.width, canvas.height).data.join();
}"""


@pytest.fixture
def lab(tmp_path):
    """The address and the folder of a JupyterLab on copies of the notebooks, without outputs.

    So everything that the browser shows was made in that browser's run.
    """
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for path in (REPOSITORY / "notebooks").glob("[0-9]*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in code_cells(notebook):
            cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, folder / path.name)
    command = ["-m", "jupyter", "lab", str(folder)]
    with served(command, tmp_path) as address:
        yield f"{address}/lab?token=student", folder


@pytest.fixture
def start_page(tmp_path):
    """The address that `make lab` opens, on copies in a folder of this test."""
    folder = REPOSITORY / f"my_notebooks-{tmp_path.name}"  # links lead from it as from a student's
    command = "import sys; from pathlib import Path; from tools import lab; "
    command += "lab.MINE = Path(sys.argv.pop(1)); lab.main()"
    try:
        with served(["-c", command, str(folder)], tmp_path) as address:
            yield f"{address}/?token=student"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def served(command, tmp_path):
    """The address of a JupyterLab that a command of this Python starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    # The user's own settings and workspaces stay out, and notebook 01 has slices to read.
    own = {f"JUPYTER_{kind}_DIR": tmp_path / kind.lower() for kind in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"OASIS_CACHE_DIR": tmp_path / "cache", "TF_CPP_MIN_LOG_LEVEL": "3"}
    # With this variable, kernels leave messages of libraries in the terminal.
    settings = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    command = [sys.executable, *command, "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", f"--port={address.split(':')[-1]}", "--ServerApp.port_retries=0"]
    with open(tmp_path / "lab.log", "wb") as log:
        server = subprocess.Popen(
            [*command, "--IdentityProvider.token=student"],
            cwd=REPOSITORY,
            env={**settings, **{name: str(value) for name, value in own.items()}},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for_server(f"{address}/api/status?token=student", server, tmp_path / "lab.log")
        yield address
    finally:
        server.terminate()
        server.wait(30)


def wait_for_server(address, server, log, seconds=90):
    for _ in range(2 * seconds):
        try:
            urllib.request.urlopen(address).close()
            return
        except urllib.error.URLError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not answer within {seconds} seconds:\n{log.read_text()}")


@pytest.fixture
def page(browser):
    with contextlib.closing(browser.new_page(viewport={"width": 1280, "height": 900})) as page:
        page.set_default_timeout(MINUTE)
        yield page


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shows_picture(output) -> bool:
    data = output.get("data", {})
    return "image/png" in data or "<img" in "".join(data.get("text/html", ""))


def open_from_launcher(page, address, name):
    """What a student does: JupyterLab starts, a double click in the list of files."""
    page.goto(address)
    page.locator(".jp-Launcher").wait_for()
    page.get_by_role("button", name="No", exact=True).click()  # to news about Jupyter
    page.locator(".jp-DirListing-item", has_text=name).dblclick()
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # before it, a dialog asks for one


def run_all(page):
    page.locator(".lm-MenuBar-item", has_text="Run").click()
    page.locator(".lm-Menu-item").get_by_text("Run All Cells", exact=True).click()


def wait_until_finished(page, cells):
    page.wait_for_function(FINISHED, arg=cells, polling=500, timeout=8 * MINUTE)
    errors = page.locator(".jp-OutputArea-output", has_text="Traceback (most recent")
    assert errors.all_text_contents() == []


def scroll_to(page, part):
    """Cells take their heights as they come into view, so the first jump lands beside the mark."""
    for _ in range(3):
        part.scroll_into_view_if_needed()
        page.wait_for_timeout(300)
    playwright.expect(part).to_be_in_viewport()


def keep(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


@pytest.mark.parametrize(
    ("stem", "work", "progress"),
    [
        # The first bar is gone when all are read, the second one stays.
        ("01_data_exploration", "load_slices(root, split, SIZE)", "reading keras_png_slices_train"),
        ("06_generation", "progress=True", "code/s"),
    ],
)
def test_run_all_in_jupyterlab(lab, page, stem, work, progress):
    address, _ = lab
    stored = nbformat.read(REPOSITORY / "notebooks" / f"{stem}.ipynb", as_version=4)
    expected = sum(shows_picture(part) for cell in code_cells(stored) for part in cell.outputs)
    open_from_launcher(page, address, f"{stem}.ipynb")
    keep(page, f"{stem}-top")
    page.evaluate(WATCH, progress)
    run_all(page)
    page.wait_for_timeout(1000)  # JupyterLab goes to the last cell, a student back to the work
    cell = page.locator(".jp-CodeCell", has_text=work)
    scroll_to(page, cell)
    page.wait_for_function("window.progress.length > 0", timeout=5 * MINUTE)
    scroll_to(page, cell)  # JupyterLab may have been late
    keep(page, f"{stem}-progress")

    wait_until_finished(page, len(code_cells(stored)))
    bars = page.evaluate("window.progress")
    assert all(re.search(r"\d+%", bar) for bar in bars) and len(set(bars)) > 1, "it stood still"
    figures = page.locator(".jp-OutputArea-output img")
    assert figures.count() == expected
    for number in range(expected):
        figure = figures.nth(number)
        scroll_to(page, figure)
        assert figure.evaluate("picture => picture.complete && picture.naturalWidth") > 100
        if number in (0, expected // 2):
            keep(page, f"{stem}-figure-{number + 1}")
    scroll_to(page, page.locator(".jp-Notebook .jp-Cell").last)
    keep(page, f"{stem}-end")


RED = """() => [...document.querySelectorAll("[data-mime-type$='jupyter.stderr']")]
    .map(output => output.textContent)"""


def test_make_lab_opens_the_start_page_unchanged_and_nothing_is_red(start_page, page):
    page.goto(start_page)
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.wait_for_timeout(2000)  # JupyterLab compares the kernel with the stored one
    assert "00_start.ipynb" in page.url and not page.locator(".jp-mod-dirty").count()
    assert page.locator(".jp-Notebook img").first.evaluate("picture => picture.naturalWidth") > 0
    page.get_by_role("button", name="No", exact=True).click()
    keep(page, "start")
    page.get_by_role("link", name="1. A folder of brain slices").click()
    panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    panel.locator(".jp-Cell", has_text="Objectives").first.wait_for()
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.wait_for_timeout(2000)
    assert not page.locator(".jp-mod-dirty").count()
    panel.locator(".jp-Cell").first.click()
    for _ in range(14):  # to the first figure, past the cell that reads all slices
        page.keyboard.press("Shift+Enter")
    page.wait_for_timeout(1000)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=3 * MINUTE)
    assert page.evaluate(RED) == []
    keep(page, "first-cells")


PAINTER = """
import numpy as np

from oasis_helpers import load_pretrained, pretrained
from oasis_helpers.painter import CodePainter

models = load_pretrained("cohort")
slices = models.load_slices(pretrained.data_root(), "test")
codes = models.vqvae.encode(slices.images[[16] * models.vqvae.num_embeddings])
codes[:, 6, 2] = np.arange(len(codes))
patches = models.vqvae.decode(codes)[:, 37:43, 19:25, 0]
names = ["0", "8", "16", "24"]
painter = CodePainter(models.vqvae, slices.images[:32:8], names, patches)
painter.slice.value = 2
painter.widget
"""


def test_a_click_in_the_code_painter_changes_the_picture_at_once(lab, page):
    address, folder = lab
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PAINTER.strip())])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, folder / "painter.ipynb")
    open_from_launcher(page, address, "painter.ipynb")
    run_all(page)
    wait_until_finished(page, 1)
    grid, palette = (page.locator(".widget-gridbox").nth(number) for number in (0, 1))
    positions, codes = grid.locator("button"), palette.locator("button")
    codes.first.wait_for()
    assert (positions.count(), codes.count()) == (13 * 11, 128)
    patch = "button => getComputedStyle(button).backgroundImage"
    assert codes.nth(100).evaluate(patch).startswith('url("data:image/png')
    codes.nth(99).focus()  # by keyboard: the next code
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    chosen = codes.nth(100).get_attribute("title")
    page.locator(".widget-label").get_by_text(chosen, exact=True).wait_for()
    keep(page, "painter-before")
    pictures = page.locator("img.jupyter-widgets")
    parts = (pictures.first, grid, pictures.last)
    boxes = [part.bounding_box() for part in parts]
    places = [(box["y"], box["width"], box["height"]) for box in boxes]
    assert places[0] == places[1] == places[2], (
        "positions of the map and their pixels don't line up"
    )
    page.evaluate(CLOCK)
    for clicked in range(1, 11):
        before = page.evaluate(PIXELS)
        positions.nth(11 * (clicked + 1) + 3 + clicked % 5).click()  # down through the brain
        page.wait_for_function("count => window.clicks.length === count", arg=clicked)
        assert page.evaluate(PIXELS) != before, f"click {clicked} changed nothing"
    keep(page, "painter-after")

    milliseconds = [round(duration) for duration in page.evaluate("window.clicks")]
    median = float(np.median(milliseconds[1:]))  # the first one wakes browser and kernel
    load = round(os.getloadavg()[0], 1)
    print(f"click to picture: {milliseconds} ms, median {median:.0f} ms, load {load}")
    figures = {"milliseconds": milliseconds, "median_of_the_last_nine": median}
    figures |= {"load_average": load, "cores": os.cpu_count()}
    (BUILD / "painter_clicks.json").write_text(json.dumps(figures) + "\n")
