"""Optional packages, and the error for a missing one."""

EXTRAS = {  # module: the package it comes in, and the extra of this project that installs it
    "PIL": ("pillow", "data"),
    "jaxopt": ("jaxopt", "peers"),
    "matplotlib": ("matplotlib", "experiments"),
    "mlxtend": ("mlxtend", "data"),
    "optimistix": ("optimistix", "peers"),
    "pooch": ("pooch", "data"),
    "rich": ("rich", "experiments"),
    "safetensors": ("safetensors", "checkpoints"),
    "sif2jax": ("sif2jax", "peers"),
    "skimage": ("scikit-image", "data"),
    "sklearn": ("scikit-learn", "experiments"),
    "torch": ("torch", "peers"),
}


def missing(what: str, error: ImportError) -> ImportError:
    """Return an ImportError that says which package `what` needs and how to install it.

    If another import failed, the error gives the reason instead.

    Example:
      >>> try:
      ...     raise ModuleNotFoundError("No module named 'rich'", name="rich")
      ... except ImportError as error:
      ...     print(missing("progress=True", error))
      progress=True needs the package rich: pip install rich, or this project's extra: pip install 'jaxopt_course[experiments]' (No module named 'rich')
    """  # noqa: E501
    module = (error.name or "").split(".")[0]
    if not isinstance(error, ModuleNotFoundError) or module not in EXTRAS:
        return ImportError(f"{what}: {error}", name=error.name)
    package, extra = EXTRAS[module]
    return ImportError(
        f"{what} needs the package {package}: pip install {package}, "
        f"or this project's extra: pip install 'jaxopt_course[{extra}]' ({error})",
        name=error.name,
    )
