"""Ways of writing tokens, one a file; every file of this package is imported, so a new one is known by being there."""

from importlib import import_module
from pkgutil import iter_modules

from mull.inference.decoders.contract import DECODERS, Decoder, Request, check_decoder, choose_decoder, decoder

for found in iter_modules(__path__):
    import_module(f"{__name__}.{found.name}")

__all__ = ["DECODERS", "Decoder", "Request", "check_decoder", "choose_decoder", "decoder"]
