"""How Sphinx builds the site; `scripts/docs` runs it, with warnings as errors and without a network."""

import headstart

project = "headstart"
author = "the authors of headstart"
version = release = headstart.__version__
copyright = "the authors of headstart, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
# Blocks of commands and of output, which are most of them, are no Python.
highlight_language = "text"
# A word in single backticks in a docstring is a name, as it is in Markdown.
default_role = "code"

nitpicky = True

html_theme = "furo"
html_title = "headstart"
