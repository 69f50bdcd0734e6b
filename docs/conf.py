"""Sphinx's configuration; `make docs` builds docs/_build from the root of the project.

From there the links between docs/, the README and others lead to the same files as in the source.
"""

import importlib

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
project = "msde"
author = "the authors of msde"
release = importlib.import_module("msde").__version__
default_role = "code"  # docstrings have code in single backticks
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/RESULTS.md",
    "msde/shipped/README.md",
]
exclude_patterns = [".*", "**/_build", "demo", "launch", "tests"]
html_theme = "pydata_sphinx_theme"
html_theme_options = {"show_toc_level": 2}
myst_heading_anchors = 4  # pages link to headings by the names that GitHub gives them
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_custom_sections = ["Source"]
