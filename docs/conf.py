"""The site: `make docs` writes it to docs/_build/html. No page loads anything from a network."""

import os
import sys
from pathlib import Path

import jax

import jaxopt_course

# Most of a build is compiling. It compiles as the tests do (tests/conftest.py), and chapters share programs.
QUICK_CODE = ["--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):  # later ones lack it
    QUICK_CODE.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(QUICK_CODE))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / "_build" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "jaxopt_course"
release = version = jaxopt_course.__version__

extensions = [
    "myst_nb",  # Markdown, and the cells of the course
    "sphinx.ext.autodoc",  # the reference, from the docstrings
    "sphinx.ext.napoleon",  # which are written in Google style
    "sphinx_design",  # cards
    "sphinx_copybutton",  # a button on every cell
    "docstrings",  # `code` and $x$ in docstrings
    "mathml",  # formulas
    "notebooks",  # chapters to download
    "lab",  # links into the lab
]
exclude_patterns = ["_build"]
html_math_renderer = "mathml"

# Pages. In a page, $...$ and $$...$$ are formulas.
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

# Cells run in every build, and an error in one is an error of the build. A cell with the tag hide-cell is a solution.
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_code_prompt_show = "Show the solution"
nb_code_prompt_hide = "Hide the solution"
nb_merge_streams = True

# The look. The theme brings all it needs.
html_theme = "furo"
html_title = f"jaxopt_course {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

# Signatures show names and defaults; shapes, dtypes and units are in the docstrings.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_param = False  # arguments that share a line of a docstring share one here
toc_object_entries_show_parents = "hide"
