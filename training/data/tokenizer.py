"""Tokenizers of text: bytes by default, or any tokenizer.json of the Hugging Face tokenizers library.

Synthetic tasks have tokenizers of their own (task.py). Every tokenizer made here has an end token, which stands after
each document and stops generation, and puts nothing else around a text: what a corpus's documents get, prompts get too,
since both are read by this tokenizer (inference/text.py), which the checkpoint folder keeps.
"""

from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from mull.checkpoints.files import read_tokenizer
from mull.training.data.task import END

# Names under which published tokenizers keep their end of text; the first one present is used.
END_NAMES = (END, "<|endoftext|>", "<|end_of_text|>", "<|end_text|>", "</s>", "<eos>", "<|eos|>", "[SEP]")


def byte_tokenizer() -> Tokenizer:
    """A tokenizer whose ids 0 to 255 are the bytes of UTF-8 and whose id 256 is <end>; decoding restores any text."""
    # The ByteLevel pre-tokenizer writes each byte as a printable character (GPT-2's table): bytes that print as
    # themselves in Latin-1 stay, the others follow from code point 256 on.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = sorted(set(range(256)) - set(printable))
    ids = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    tokenizer = Tokenizer(BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return tokenizer


def load_tokenizer(path: str | None = None) -> Tokenizer:
    """The tokenizer of a tokenizer.json, without truncation, padding or template; the byte tokenizer if `path` is None.

    A tokenizer without a known end token gets "<end>" as a new token; decoding leaves the end token out.

    Raises FileNotFoundError for a missing file, ValueError for a file that holds no tokenizer.
    """
    if path is None:
        return byte_tokenizer()
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"no tokenizer at {path}: name a tokenizer.json file, or none for bytes")
    tokenizer = read_tokenizer(file)
    tokenizer.post_processor = None  # documents are packed as they are, so prompts may not get a [CLS] either
    end = next((name for name in END_NAMES if tokenizer.token_to_id(name) is not None), END)
    tokenizer.add_special_tokens([end])  # a known one keeps its id
    return tokenizer


def stop_tokens_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The id of the end token, as a tuple of one id; empty if the tokenizer has no known end token."""
    ids = (tokenizer.token_to_id(name) for name in END_NAMES)
    return tuple(i for i in ids if i is not None)[:1]


def vocab_size_of(tokenizer: Tokenizer) -> int:
    """One more than the largest id. Some published vocabularies leave ids unused, so the entries are not counted."""
    return max(tokenizer.get_vocab().values()) + 1
