"""Sphinx: Markdown pages, the API from docstrings, nothing fetched from a network."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "keras_bn"
copyright = "the keras_bn authors, Apache-2.0"
release = version_of("keras-bn")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "command_help",
    "docstrings",
    "mathml",
    "repository",
]
exclude_patterns = ["_extensions"]

nb_execution_mode = "off"  # the notebooks are shown as they are
nb_output_stderr = "remove"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# <keras:7265> is a link to that issue, written keras#7265.
myst_url_schemes = {"http": None, "https": None, "mailto": None} | {
    scheme: {
        "url": f"https://github.com/{repository}/issues/{{{{path}}}}",
        "title": f"{scheme}#{{{{path}}}}",
    }
    for scheme, repository in {
        "keras": "keras-team/keras",
        "keras-core": "keras-team/keras-core",
        "tf-keras": "keras-team/tf-keras",
        "tensorflow": "tensorflow/tensorflow",
        "addons": "tensorflow/addons",
        "models": "tensorflow/models",
        "serving": "tensorflow/serving",
        "pytorch": "pytorch/pytorch",
        "lightning": "Lightning-AI/pytorch-lightning",
    }.items()
}

autodoc_default_options = {
    "members": True,
    "undoc-members": False,
    "member-order": "bysource",
}
autodoc_typehints_format = "short"
autodoc_type_aliases = {"ArrayLike": "ArrayLike", "Array": "Array"}
autodoc_preserve_defaults = True
autodoc_mock_imports = ["apache_beam"]  # an extra of its own
default_role = "py:obj"
add_module_names = False
python_maximum_signature_line_length = 88
napoleon_custom_sections = [("Call arguments", "params_style")]
napoleon_use_ivar = True
napoleon_use_rtype = False

smartquotes_action = "D"  # the dash between a name and what it means

html_theme = "furo"
html_title = "keras_bn"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"
html_theme_options = {"footer_icons": [], "navigation_with_keys": True}
highlight_language = "text"  # of fences that name none
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_exclude = ".linenos, .gp, .go"
