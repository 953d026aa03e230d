"""The site that `make book` builds of README, docs/, the executed notebooks and their solutions.

The source folder is the whole repository, so no page has a second copy that could drift:

    sphinx-build -c book . build/book

Notebooks aren't executed; their stored outputs are shown. Nothing is fetched, neither by the build
nor by the finished pages.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for the extension `pages`
sys.path.insert(0, str(Path(__file__).parents[1]))  # for the docstrings of the package

# The package brings the files of MathJax 3; of these one is needed, with its glyphs inside.
MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"

project = "VQ-VAE and PixelCNN on brain MRI"
language = "en"
root_doc = "README"
include_patterns = [
    "*.md",
    "book/*.md",
    "data/README.md",
    "data/features/README.md",
    "docs/*.md",
    "notebooks/**",
]
exclude_patterns = [  # folders that Sphinx need not walk through, and a part of another page
    ".*",
    "build",
    "data/cache",
    "data/cohort",
    "data/weights",
    "experiments",
    "my_*",
    "oasis_helpers",
    "tests",
    "tools",
    "book/contents.md",
    "**/.ipynb_checkpoints",
]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "pages"]

# The API reference: what has a docstring, in the order of the source.
autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False  # those of Keras stand in Keras's own documentation
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings give shapes and units, which types cannot
default_role = "code"  # `name` in a docstring is code
napoleon_numpy_docstring = False
napoleon_use_rtype = False

nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # widgets aren't live on a page, and their scripts would be fetched
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

mathjax_path = "tex-svg.js"
mathjax3_config = {
    "options": {"enableMenu": False},
    "tex": {"packages": {"[-]": ["noundefined"]}},  # an unknown command is an error, not red text
}

html_theme = "sphinx_book_theme"
html_title = project
html_logo = html_favicon = "static/icon.svg"
html_static_path = ["static", f"{MATHJAX}/tex-svg.js"]
html_extra_path = ["index.html"]
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is
html_sidebars = {"book/draw": []}  # the page that samples a slice takes the whole width
html_css_files = ["pages.css"]
html_show_search_summary = False  # each search would load every page that it finds
html_use_index = False
html_domain_indices = False
html_show_sphinx = False
html_theme_options = {
    "logo": {"text": project},
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "navbar_persistent": [],
    "search_bar_text": "Search",
    "use_fullscreen_button": False,
    "footer_content_items": "extra-footer.html",
    "extra_footer": "For teaching and research on methods; not for diagnosis or any clinical use.",
}
