"""The pages of `make book`: complete, linked and described; in a browser, fit to read."""

import base64
import contextlib
import functools
import http.server
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup

from oasis_helpers.data import REPOSITORY

pytest.importorskip("sphinx_book_theme", reason="the pages need packages of the extra 'docs'")

START = REPOSITORY / "notebooks" / "00_start.ipynb"
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("0[1-9]*.ipynb"))
SOLUTIONS = sorted((REPOSITORY / "notebooks" / "solutions").glob("*.ipynb"))
SCREENSHOTS = REPOSITORY / "build" / "screenshots"
ARXIV = re.compile(r"arXiv\s+(\d{4}\.\d{4,5})")
PNG = "image/png"
LOADED = {  # what a page loads by itself, unlike a link that a reader may follow
    "script[src]": "src",
    "img[src]": "src",
    "iframe[src]": "src",
    "link:not([rel=canonical], [rel=next], [rel=prev])": "href",
}


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The site, built as `make book` does."""
    folder = tmp_path_factory.mktemp("book")
    command = ["-m", "sphinx", "--quiet", "--fail-on-warning", "-c", "book", ".", str(folder)]
    built = subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="session")
def pages(site) -> dict[Path, BeautifulSoup]:
    paths = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    return {path: BeautifulSoup(path.read_text("utf-8"), "html.parser") for path in paths}


def page_of(site: Path, notebook: Path) -> Path:
    return site / notebook.relative_to(REPOSITORY).with_suffix(".html")


# ------------------------------------------------------------------------------- the built files


def test_every_notebook_and_document_has_its_page(site, pages):
    readme = REPOSITORY / "README.md"
    documents = {*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")}
    wanted = {*NOTEBOOKS, *SOLUTIONS, *documents, REPOSITORY / "notebooks/README.md"}
    assert {page_of(site, source) for source in wanted} <= set(pages)
    menu = [link["href"] for link in pages[site / "README.html"].select("nav.bd-links a[href]")]
    assert [link for link in menu if re.match(r"notebooks/\d", link)] == [
        f"notebooks/{notebook.stem}.html" for notebook in [START, *NOTEBOOKS]
    ]
    in_menu = {
        f"{page.relative_to(REPOSITORY).with_suffix('')}.html" for page in documents - {readme}
    }
    assert len(in_menu) > 5 and in_menu <= set(menu)


def test_links_and_pictures_lead_somewhere(site, pages):
    ids = {path: {tag["id"] for tag in page.select("[id]")} for path, page in pages.items()}
    broken = []
    for path, page in pages.items():
        for tag in page.select("[href], [src]"):
            target = urlsplit(tag.get("href") or tag.get("src"))
            if target.scheme or target.netloc:
                continue
            file = Path(os.path.normpath(path.parent / unquote(target.path)))
            file = file if target.path else path
            anchor = unquote(target.fragment)
            if not file.is_file() or (anchor and anchor not in ids.get(file, {anchor})):
                broken.append(f"{path.relative_to(site)}: {target.geturl()}")
    assert not broken


def test_links_between_notebooks_are_links_between_pages(site, pages):
    for notebook in [*NOTEBOOKS, *SOLUTIONS]:
        article = pages[page_of(site, notebook)].select_one("article")
        targets = [link["href"] for link in article.select("a.internal[href]")]
        assert not [target for target in targets if re.search(r"(\.ipynb|\.md|/)(#|$)", target)]
        assert any(re.search(r"(^|/)\d\d_\w+\.html$", target) for target in targets)


def test_pages_load_nothing_from_elsewhere(site, pages):
    for path, page in pages.items():
        for selector, attribute in LOADED.items():
            for tag in page.select(selector):
                target = urlsplit(tag[attribute])
                assert target.scheme in ("", "data") and not target.netloc, (path, tag[attribute])
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text("utf-8"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_figures_are_described_numbered_and_captioned(site, pages, notebook):
    figures = pages[page_of(site, notebook)].select("article figure")
    captions = [figure.figcaption.strong.text for figure in figures]
    chapter = int(notebook.stem[:2])
    assert captions == [f"Figure {chapter}.{k}" for k in range(1, len(figures) + 1)]
    pictures = [figure.img for figure in figures]
    others = pages[page_of(site, notebook)].select("article img:not([src$='.svg'])")
    assert pictures == others  # but for diagrams, which stand in the text
    assert min(len(picture["alt"]) for picture in pictures) >= 40
    for picture, figure in zip(pictures, figures, strict=True):
        assert picture["alt"] in figure.figcaption.text
    described = {
        base64.b64decode(output["data"][PNG]): cell.metadata.alt
        for cell in nbformat.read(notebook, as_version=4).cells
        for output in cell.get("outputs", [])
        if PNG in output.get("data", {})
    }
    shown = {
        (page_of(site, notebook).parent / picture["src"]).read_bytes(): picture["alt"]
        for picture in pictures
        if not picture["src"].startswith("data:")
    }
    assert shown == described


def test_references_are_links_and_collected_once(site, pages):
    cited = {
        number
        for notebook in NOTEBOOKS
        for cell in nbformat.read(notebook, as_version=4).cells
        if cell.cell_type == "markdown"
        for number in ARXIV.findall(cell.source.partition("## References")[2])
    }
    links = [link["href"] for link in pages[site / "book/references.html"].select("article li a")]
    collected = [link.rpartition("/")[2] for link in links if "arxiv.org" in link]
    assert sorted(collected) == sorted(cited) != []
    for notebook in NOTEBOOKS:
        article = pages[page_of(site, notebook)].select_one("article")
        linked = [link.text for link in article.select('a[href^="https://arxiv.org/abs/"]')]
        assert sorted(ARXIV.findall(article.text)) == sorted(
            number for text in linked for number in ARXIV.findall(text)
        )


def markdown_of(notebook: Path) -> str:
    cells = nbformat.read(notebook, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_questions_answer_back(site, pages, notebook):
    """Every option unfolds its answer without a script, and of each question one is right."""
    prose = markdown_of(notebook)
    section = pages[page_of(site, notebook)].select_one("section#check-yourself")
    assert (section is not None) == ("### Check yourself" in prose)
    if section is None:
        pytest.skip("asks no questions yet")
    options = section.select("details:not(.deeper)")
    asked = prose.partition("### Check yourself")[2].partition("\n## ")[0]
    assert len(options) == asked.count("<details>") > 0
    rights = []
    for option in options:
        before = option.find_previous_sibling()
        if before is None or before.name != "details":
            rights.append(0)
        answer = option.text.removeprefix(option.summary.text).strip()
        assert option.summary.text.strip() and re.match(r"(Right|No)\b", answer), option
        assert "`" not in option.text and "**" not in option.text, "Markdown is not read in HTML"
        rights[-1] += answer.startswith("Right")
    assert 4 <= len(rights) <= 6 and set(rights) == {1}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_deeper_sections_are_closed(site, pages, notebook):
    """Each holds all of its section, under its heading; nothing else of the page is in one."""
    titles = re.findall(r"^## (Deeper: .+)$", markdown_of(notebook), re.M)
    closed = pages[page_of(site, notebook)].select("article details.deeper")
    assert [part.summary.h2.text.rstrip("#").strip() for part in closed] == [
        title.replace("`", "") for title in titles
    ]
    for part in closed:
        assert not part.has_attr("open") and part.parent.name == "section"
        around = {child.name for child in part.parent.find_all(recursive=False)}
        assert around <= {"details", "span"}  # a span is an anchor


@pytest.fixture(scope="session")
def folded(tmp_path_factory) -> Path:
    """A page with all that folds, built as pages of notebooks are."""
    cells = [
        nbformat.v4.new_markdown_cell("# 1. A page"),
        nbformat.v4.new_markdown_cell("## Deeper: `codes`\n\nFor the curious."),
        nbformat.v4.new_code_cell("print(1)", metadata={"tags": ["deeper", "hide-input"]}),
        nbformat.v4.new_markdown_cell("### More\n\n<details><summary>2</summary>Right.</details>"),
        nbformat.v4.new_markdown_cell("## Summary\n\nThe end."),
    ]
    source, site = (tmp_path_factory.mktemp(name) for name in ("source", "folded"))
    for name in ("notebooks", "book"):
        (source / name).mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), source / "notebooks" / "01_page.ipynb")
    (source / "index.md").write_text("# A site\n")
    (source / "book" / "contents.md").write_text("```{toctree}\nnotebooks/01_page\n```\n")
    settings = {
        "extensions": "myst_nb,pages",
        "nb_execution_mode": "off",
        "html_theme": "sphinx_book_theme",
        "html_static_path": REPOSITORY / "book" / "static",
        "html_css_files": "pages.css",
    }
    options = [f"-D{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "sphinx", "-qCE", *options, str(source), str(site)]
    paths = {**os.environ, "PYTHONPATH": str(REPOSITORY / "book")}
    subprocess.run(command, env=paths, check=True, timeout=120)
    return site / "notebooks" / "01_page.html"


def test_what_folds_needs_no_script(folded):
    article = BeautifulSoup(folded.read_text("utf-8"), "html.parser").article
    deeper = article.select_one("section > details.deeper")
    assert deeper.summary.h2.code.text == "codes"
    assert "For the curious." in deeper.text and deeper.select_one("section#more details")
    assert deeper.select_one("div.cell_input details, details.hide").summary
    assert "The end." not in deeper.text and "The end." in article.text


# ------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="session")
def address(site):
    """The site as a server gives it."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


SCREENS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
SHOWN = {  # what the screenshots show, beside the top of every page
    "README": ("#results",),
    "notebooks/01_data_exploration": ("#first-look", "#intensities"),
    "notebooks/02_vqvae_building": ("#reference-and-ours", "#mse-and-ssim"),
    "notebooks/04_codebook_analysis": ("#figure-4-2",),
    "notebooks/06_generation": ("#watch-one-grow", "#references"),
}
FAULTS = """() => {
  const faults = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth)
    faults.push(`${root.scrollWidth} pixels wide on ${root.clientWidth}`);
  for (const picture of document.images)
    if (!picture.complete || picture.naturalWidth === 0) faults.push(`no picture ${picture.src}`);
  const formulas = document.querySelectorAll(".math").length;
  const typeset = document.querySelectorAll(".math mjx-container").length;
  if (formulas !== typeset) faults.push(`${typeset} of ${formulas} formulas are typeset`);
  for (const wrong of document.querySelectorAll("[data-mjx-error]"))
    faults.push(`formula: ${wrong.dataset.mjxError}`);
  return faults;
}"""


@contextlib.contextmanager
def opened(browser, screen, scheme="light"):
    """A tab of the given size, and the list of what goes wrong in it while it is open."""
    context = browser.new_context(viewport=SCREENS[screen], color_scheme=scheme)
    tab, faults = context.new_page(), []
    tab.on("pageerror", lambda error: faults.append(f"error: {error}"))
    tab.on("requestfailed", lambda request: faults.extend(failure(request)))
    tab.on("request", lambda request: faults.extend(elsewhere(request.url)))
    tab.on("console", lambda said: faults.extend(complaint(said)))
    try:
        yield tab, faults
    finally:
        context.close()


def elsewhere(url):
    local = urlsplit(url).hostname == "127.0.0.1" or url.startswith("data:")
    return [] if local else [f"asked for {url}"]


def failure(request):
    left = request.failure == "net::ERR_ABORTED"  # by leaving the page, which is no fault of it
    return [] if left else [f"{request.failure}: {request.url}"]


def complaint(said):
    loud = said.type in ("error", "warning")
    return [f"{said.text} ({said.location['url']})"] if loud else []


def visit(tab, url):
    tab.goto(url, wait_until="load")
    tab.evaluate("() => window.MathJax?.startup?.promise")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_pages_in_a_browser(browser, address, site, pages, screen, scheme):
    """No overflow, broken picture, console error or foreign request, on any page."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    found = {}
    for path in sorted(set(pages) - {site / "index.html"}):
        page = path.relative_to(site).with_suffix("").as_posix()
        with opened(browser, screen, scheme) as (tab, faults):
            visit(tab, f"{address}/{page}.html")
            faults += tab.evaluate(FAULTS)
            assert tab.evaluate("document.documentElement.dataset.theme") == scheme
            name = f"{page.replace('/', '-')}-{screen}-{scheme}"
            tab.screenshot(path=SCREENSHOTS / f"{name}.png")
            for anchor in SHOWN.get(page, ()):
                tab.evaluate("id => document.querySelector(id).scrollIntoView()", anchor)
                tab.screenshot(path=SCREENSHOTS / f"{name}-{anchor[1:]}.png")
            if faults:
                found[page] = faults
    assert not found


@pytest.mark.browser
def test_what_folds_opens_with_a_click_and_in_print(browser, folded):
    context = browser.new_context(viewport=SCREENS["desktop"], java_script_enabled=False)
    with contextlib.closing(context):
        tab = context.new_page()
        tab.goto(folded.as_uri())
        section = tab.locator("article details.deeper")
        closed = section.bounding_box()["height"]
        tab.emulate_media(media="print")
        assert section.bounding_box()["height"] > 3 * closed
        tab.emulate_media(media="screen")
        assert section.bounding_box()["height"] == closed
        section.locator("summary").first.click()
        assert tab.get_by_text("For the curious.").is_visible()
        opened = section.bounding_box()["height"]
        section.get_by_text("2", exact=True).click()
        assert section.bounding_box()["height"] > opened > closed


@pytest.mark.browser
@pytest.mark.parametrize("screen", SCREENS)
def test_search_finds_and_leads_to_it(browser, address, screen):
    with opened(browser, screen) as (tab, faults):
        tab.goto(f"{address}/index.html")
        tab.wait_for_url("**/README.html")  # where index.html sends its reader
        tab.locator(".search-button__button:visible, .search-button:visible").first.click()
        tab.locator("#pst-search-dialog input[type=search]").fill("straight-through estimator")
        tab.keyboard.press("Enter")
        hit = tab.locator("#search-results a", has_text="Building a VQ-VAE").first
        hit.wait_for()
        tab.screenshot(path=SCREENSHOTS / f"search-{screen}.png")
        hit.click()
        tab.wait_for_url("**/02_vqvae_building.html*")
        assert not faults


@pytest.mark.browser
@pytest.mark.parametrize("screen", SCREENS)
def test_dark_mode_toggles_and_leaves_figures_as_they_are(browser, address, screen):
    with opened(browser, screen) as (tab, faults):
        visit(tab, f"{address}/notebooks/01_data_exploration.html")
        brightness = {}
        for theme in ("dark", "light"):
            tab.locator(".theme-switch-button:visible").click()
            tab.locator(f".theme-change-button[data-mode={theme}]:visible").click()
            assert tab.evaluate("document.documentElement.dataset.theme") == theme
            page = tab.evaluate("getComputedStyle(document.body).backgroundColor")
            brightness[theme] = sum(map(float, re.findall(r"[\d.]+", page)[:3])) / 3
            picture = "getComputedStyle(document.querySelector('figure img'))"
            assert tab.evaluate(f"{picture}.filter") == "none"
            if theme == "dark":
                assert tab.evaluate(f"{picture}.backgroundColor") == "rgb(255, 255, 255)"
        assert brightness["dark"] < 60 and brightness["light"] > 200
        assert not faults


@pytest.mark.browser
def test_the_menu_opens_on_a_phone(browser, address):
    with opened(browser, "phone") as (tab, faults):
        visit(tab, f"{address}/README.html")
        link = tab.locator("nav.bd-links").get_by_role("link", name="2. Building a VQ-VAE")
        assert not link.is_visible()
        tab.locator(".primary-toggle:visible").click()
        link.wait_for()
        tab.wait_for_timeout(400)  # the menu slides in
        tab.screenshot(path=SCREENSHOTS / "menu-phone.png")
        link.click()
        tab.wait_for_url("**/02_vqvae_building.html")
        assert not faults


# ------------------------------------------------------------------------------- the live page


LIVE = "book/draw"
FINISHED = """() => document.getElementById("draw-status").textContent.startsWith("Sampled")"""
CODES = """() => [...document.querySelectorAll("#draw-map button")].map(
    button => Number(button.title.match(/: code (\\d+)$/)[1]))"""
GREYS = """() => {
  const { width, height } = document.getElementById("draw-slice");
  const context = document.getElementById("draw-slice").getContext("2d");
  return [...context.getImageData(0, 0, width, height).data].filter((_, i) => i % 4 === 0);
}"""
SECONDS, MINUTE = 5, 60_000  # from opening to the first slice; milliseconds to wait for it


@pytest.fixture(scope="module")
def cohort():
    from oasis_helpers import load_pretrained

    return load_pretrained("cohort")


@pytest.mark.browser
@pytest.mark.parametrize(
    ("slice_index", "temperature", "seed"),
    [(16, "1", 0), (0, "0.7", 1), (31, "1", 2), (8, "1.5", 123), (24, "0.1", 9999)],
)
def test_live_page_samples_the_codes_of_sample_codes(
    browser, address, cohort, slice_index, temperature, seed
):
    """All codes, and grey levels but for rounding."""
    from oasis_helpers import sample_codes

    settings = {"index": slice_index, "temperature": temperature, "seed": seed}
    with opened(browser, "desktop") as (tab, faults):
        visit(tab, f"{address}/{LIVE}.html")
        for name, value in settings.items():
            tab.locator(f"#draw-{name}").fill(str(value))
        tab.get_by_role("button", name="Sample", exact=True).click()
        tab.wait_for_function(FINISHED, timeout=MINUTE)
        codes, greys = tab.evaluate(CODES), tab.evaluate(GREYS)
        shown = tab.locator("#draw-python").text_content()
        assert not faults
    models = cohort  # the name in the line that the page shows
    assert shown.startswith("sample_codes(models.prior, 1, ")
    expected = eval(shown)
    same = sample_codes(
        models.prior, 1, slice_index=slice_index, temperature=float(temperature), seed=seed
    )
    assert codes == same.ravel().tolist() == expected.ravel().tolist()
    top, left, height, width = models.vqvae.region
    decoded = models.vqvae.decode(same)[0, top : top + height, left : left + width, 0]
    assert np.abs(np.reshape(greys, decoded.shape) - 255 * decoded).max() < 0.51


@pytest.mark.browser
@pytest.mark.parametrize("screen", SCREENS)
def test_live_page_shows_a_slice_soon_and_is_accessible(browser, address, screen):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with opened(browser, screen) as (tab, faults):
        start = time.monotonic()
        tab.goto(f"{address}/{LIVE}.html")
        tab.wait_for_function(FINISHED, timeout=MINUTE)
        seconds = time.monotonic() - start
        tab.screenshot(path=SCREENSHOTS / f"live-{screen}.png")
        assert tab.evaluate(FAULTS) == faults == []
        assert not axe.Axe().run(tab).response["violations"]
    assert seconds < SECONDS, f"load {os.getloadavg()[0]:.1f}"


@pytest.mark.browser
def test_live_page_is_repainted_by_keyboard_without_a_server(browser, site, cohort):
    """From a file, where a browser lets a page read no other."""
    with opened(browser, "desktop") as (tab, faults):
        visit(tab, (site / f"{LIVE}.html").as_uri())
        tab.wait_for_function(FINISHED, timeout=MINUTE)
        codes = tab.evaluate(CODES)
        tab.locator("#draw-seed").focus()
        for key in ("Tab", "Tab", "ArrowDown", "ArrowDown", "ArrowRight"):  # past "Sample"
            tab.keyboard.press(key)
        _, columns = cohort.vqvae.code_shape
        assert tab.evaluate("document.activeElement.title").startswith("row 2, column 1: code")
        for key in ("Tab", "ArrowRight", "Space", "Shift+Tab", "Space"):
            tab.keyboard.press(key)
        chosen = tab.locator("#draw-palette [aria-pressed=true]")
        codes[2 * columns + 1] = int(chosen.get_attribute("title").removeprefix("code "))
        assert tab.evaluate(CODES) == codes
        decoded = cohort.vqvae.decode(np.reshape(codes, (1, *cohort.vqvae.code_shape)))[0, ..., 0]
        top, left, height, width = cohort.vqvae.region
        decoded = decoded[top : top + height, left : left + width]
        assert np.abs(np.reshape(tab.evaluate(GREYS), decoded.shape) - 255 * decoded).max() < 0.51
        assert not [fault for fault in faults if not fault.startswith("asked for file:")]
