"""The families of models: the only place that knows them all; the store, the face, tests and command line ask here.

A family is a file of this package, with `@family` above its model. Every file of the package is imported here, so a new
one is known without a line elsewhere; a family in a module of your own is known once that module is imported.
"""

from importlib import import_module
from pkgutil import iter_modules

import mull.models
from mull.models.language_model import FAMILIES, LanguageModel

for found in iter_modules(mull.models.__path__):
    import_module(f"mull.models.{found.name}")

__all__ = ["FAMILIES", "class_named", "family_of"]


def family_of(model: LanguageModel) -> str:
    """The model_type of a model. Raises ValueError for a class that is no registered family."""
    model_type = model.config_class.model_type
    if FAMILIES.get(model_type) is type(model):
        return model_type
    raise ValueError(
        f"a {type(model).__name__} cannot be saved as a folder: it is no registered family ({', '.join(FAMILIES)}); "
        "put @family above its class"
    )


def class_named(name: str) -> type | None:
    """The model or configuration class of this name among the families; None if there is none."""
    classes = [kind for model_class in FAMILIES.values() for kind in (model_class, model_class.config_class)]
    return {kind.__name__: kind for kind in classes}.get(name)
