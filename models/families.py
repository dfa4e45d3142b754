"""The families of models: the only place that knows them all. The store, the face, the tests and the command line ask
here.

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
    for model_type, model_class in FAMILIES.items():
        if type(model) is model_class:
            return model_type
    raise ValueError(
        f"a {type(model).__name__} cannot be saved as a folder: it is no registered family ({', '.join(FAMILIES)}); "
        "put @family above its class"
    )


def class_named(name: str) -> type | None:
    """The model or configuration class of this name among the families; None if there is none."""
    for model_class in FAMILIES.values():
        for candidate in (model_class, model_class.config_class):
            if candidate.__name__ == name:
                return candidate
    return None
