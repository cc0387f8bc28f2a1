"""Sphinx: Markdown in, one static site out. Builds offline, and a warning is an error (`make docs`)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import mtlbench

project = "mtlbench"
author = "The mtlbench developers"
project_copyright = "The mtlbench developers"
version = release = mtlbench.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "generated", "mathml"]
exclude_patterns = ["_build", "_printed"]
default_role = "code"
nitpicky = False

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 140

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "mtlbench"
html_static_path = ["_static"]
html_extra_path = ["_extra"]
html_css_files = ["mtlbench.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {
        "color-brand-primary": "#0b6158",
        "color-brand-content": "#0b6158",
        "color-brand-visited": "#4c5f7a",
        "color-background-secondary": "#f7f8f7",
        "color-background-border": "#e3e7e5",
        "color-api-name": "#0b6158",
        "color-api-pre-name": "#5a6b68",
    },
    "dark_css_variables": {
        "color-brand-primary": "#6fd3c3",
        "color-brand-content": "#6fd3c3",
        "color-brand-visited": "#a9b9d4",
        "color-background-primary": "#14181a",
        "color-background-secondary": "#191e20",
        "color-background-border": "#2a3134",
        "color-api-name": "#6fd3c3",
        "color-api-pre-name": "#9aa9a6",
    },
}
