"""`mull generate` and `mull chat`: the options of commands that write text, and what they do."""

from __future__ import annotations

from typing import Any

from mull.checkpoints import load, load_tokenizer
from mull.inference.arguments import MAX_ASKED, CacheDtype, add_device, add_likeliest, at_least, shares
from mull.inference.chat import converse
from mull.inference.console import call_of, dtype_of, write_answer, write_answers
from mull.inference.prompts import read_prompts
from mull.models import LanguageModel


def add_generating(parser: Any) -> None:
    """The options of `mull generate`."""
    add_writing(parser)
    parser.add_argument("--prompt", type=str, help="text to continue; the answer is streamed")
    parser.add_argument(
        "--prompts",
        type=str,
        help='file of prompts, one a line or {"prompt": ...} a line in .jsonl (- is standard input): one JSON line per '
        "answer as it is finished, with the number of its line",
    )
    parser.add_argument("--batch-size", type=at_least(1), default=16, help="prompts of a file answered at once")


def add_writing(parser: Any) -> None:
    """The options of commands that write text."""
    parser.add_argument("--iterations", type=at_least(1, MAX_ASKED), help="thinking per token (default: trained mean)")
    parser.add_argument(
        "--capacity", type=shares, help="share of positions in routed passes, 0.5 or one each: 0.9,0,0.9"
    )
    parser.add_argument(
        "--exit", type=str, help="rule that ends thinking early, as latent:0.03; --iterations is then the most"
    )
    parser.add_argument(
        "--decode",
        type=str,
        help="way of writing (plain): speculate:4:16 drafts 16 tokens at 4 iterations, same text, sooner; "
        "wavefront:4:32 thinks about up to 32 tokens at once, 4 iterations a round, sooner still, but lossy",
    )
    parser.add_argument("--warm-start", action="store_true", help="begin each token from the last one's state")
    parser.add_argument("--cache-dtype", type=CacheDtype, default="same", help="of keys and values; same: the model's")
    parser.add_argument("--compile", action="store_true", help="compile the layers first: half a minute, then sooner")
    parser.add_argument("--max-new-tokens", type=at_least(1), default=64, help="longest answer in tokens")
    parser.add_argument(
        "--stop", type=str, action="append", help=r"text that ends an answer, \n is a line end; repeatable"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
    add_likeliest(parser)
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the sampling")
    add_device(parser)


def generate(options: Any) -> int:
    """Answer one prompt, or those of a file; return the exit status.

    Raises:
        FileNotFoundError, ValueError: the folder, the prompts or an option is wrong.
    """
    if (options.prompt is None) == (options.prompts is None):
        raise ValueError('give either --prompt "text" or --prompts FILE')

    lines = None if options.prompts is None else read_prompts(options.prompts)
    model, call = load_writer(options), call_of(options)
    if lines is not None:
        return write_answers(model, lines, options.prompts, options.batch_size, call)
    write_answer(model, options.prompt, call)
    return 0


def chat(options: Any) -> None:
    """Talk until the user ends it.

    Raises:
        FileNotFoundError, ValueError: the folder or an option is wrong.
    """
    converse(load_writer(options), call_of(options))


def load_writer(options: Any) -> LanguageModel:
    """The model of the folder, with the tokenizer that text needs."""
    model = load(options.folder, options.device, dtype_of(options.get("dtype", "same")))
    if model.tokenizer is None:
        model.tokenizer = load_tokenizer(options.folder)  # says what is missing
    if options.get("compile"):
        model.compile_decoding()
    return model
