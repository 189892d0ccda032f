"""How Sphinx makes a site of these pages: `sphinx-build -W docs build/docs`. docs/decisions/0007 says why Sphinx."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "extensions")]  # this tree's docstrings, not those of an installed one

project = "fastrnn"
author = copyright = "the authors of fastrnn"
extensions = ["myst_parser", "sphinx.ext.autodoc", "docstrings", "commands"]
html_theme = "furo"
html_title = "fastrnn"
pygments_dark_style = "github-dark"
html_copy_source = False
exclude_patterns = ["_build"]
myst_heading_anchors = 3
suppress_warnings = [
    "myst.header",
    "misc.highlighting_failure",
]  # a page may begin where it likes; shown text is no code

default_role = "py:obj"  # `name` in a docstring: a link if it is a name of the reference, else plain code
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say dtypes and shapes, which annotations can't
autodoc_preserve_defaults = True
autodoc_mock_imports = ["ray", "pyspark"]  # large, and only some tests install them
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
