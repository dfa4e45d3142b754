"""The checkpoint folder: save, load, and the folders that ship with the library."""

from mull.checkpoints.store import load, load_tokenizer, save

__all__ = ["load", "load_tokenizer", "save"]
