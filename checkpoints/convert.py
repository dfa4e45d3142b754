"""From one layout of checkpoint folders to the other: mull's, and the public recurrent-depth one (huginn.py)."""

from pathlib import Path

from mull.checkpoints import huginn
from mull.checkpoints.files import path_of, read_json
from mull.checkpoints.names import folder_of
from mull.checkpoints.store import CONFIG, TOKENIZER, load, load_tokenizer, save


def convert(source: str, destination: str) -> Path:
    """Write the folder `source` in the other layout; return the folder that was written.

    Raises:
        FileNotFoundError, ValueError: there is no model at `source` that the other layout can hold, or something stands
            at `destination`.
    """
    origin, place = folder_of(source), path_of(destination, "the destination")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ValueError(f"{place} is there already; name a folder that is new or empty")
    model = load(origin)
    tokenizer = load_tokenizer(origin) if (origin / TOKENIZER).is_file() else None
    if huginn.is_huginn(read_json(origin / CONFIG)):
        save(model, place, tokenizer)
    else:
        huginn.write(model, place, tokenizer)
    return place
