"""How Sphinx builds the site; `scripts/docs` runs it, with warnings as errors and without a network."""

import headstart

project = "headstart"
author = "the authors of headstart"
copyright = "the authors of headstart, Apache-2.0"
version = release = headstart.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["html_image"]
myst_heading_anchors = 3
# Most blocks are commands and what they print, which no lexer knows.
highlight_language = "text"
# An option begins with two hyphens, not with a dash.
smartquotes = False

# A word in single backticks in a docstring is a name, as it is in Markdown.
default_role = "code"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
# One argument a line, where a signature is longer than a line.
maximum_signature_line_length = 88
add_module_names = False

nitpicky = True
# Names of Python, NumPy and PyTorch would need their inventories, and so a network; names of headstart's
# inside that a signature mentions have no page.
nitpick_ignore_regex = [("py:.*", ".*")]

html_theme = "furo"
html_title = "headstart"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False

# `scripts/docs --links` alone looks at addresses elsewhere.
linkcheck_timeout = 20
linkcheck_anchors = False
