"""How Sphinx makes a site of these pages: `sphinx-build -W docs build/docs`. docs/decisions/0007 says why Sphinx."""

project = "fastrnn"
author = copyright = "the authors of fastrnn"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "fastrnn"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
suppress_warnings = [
    "myst.header",
    "misc.highlighting_failure",
]  # a page may begin where it likes; shown text is no code
