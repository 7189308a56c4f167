"""How Sphinx builds the site; `scripts/docs` runs it, with warnings as errors and without a network."""

import re

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
napoleon_use_ivar = True
autodoc_default_options = {"exclude-members": "model_config"}
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

# So many characters of a class' signature are a help; its fields are listed below it in any case.
SIGNATURE = 300


def shorten_signature(_app, what, _name, _object, _options, signature, returned):
    """Leave out the signature of a class that nobody reads to its end, or that has no defaults to show."""
    if what == "class" and signature and (len(signature) > SIGNATURE or "<factory>" in signature):
        return "", None
    return signature, returned


def part_attributes(_app, _what, _name, _object, _options, lines):
    """Give each of several attributes that share a line of a docstring one of its own, as napoleon wants."""
    parted = []
    while lines:
        entry = [lines.pop(0)]
        if found := re.fullmatch(r"( {4})(\w+(?:, \w+)+)(: .*)", entry[0]):
            while lines and lines[0].startswith(" " * 5):
                entry.append(lines.pop(0))
            for name in found[2].split(", "):
                parted += [f"{found[1]}{name}{found[3]}", *entry[1:]]
        else:
            parted += entry
    lines[:] = parted


def setup(app):
    app.connect("autodoc-process-docstring", part_attributes, priority=100)  # before napoleon's
    app.connect("autodoc-process-signature", shorten_signature)
