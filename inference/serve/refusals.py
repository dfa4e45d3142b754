"""What is wrong with a request, in one line and in the shape that OpenAI gives its errors."""

from __future__ import annotations

import sys
import traceback
from typing import Any

from mull.checkpoints.files import one_line, shown

MENDABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refused(ValueError):
    """A request that is not answered.

    Args:
        message: one line that names the value, the limit and the remedy.
        status: of HTTP.
        param: the field that is wrong.
        code: a word for programs.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(one_line(message, 400))
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def wrong(param: str, value: object, wanted: str) -> Refused:
    """The refusal of a field's value."""
    return Refused(f"{param} must be {wanted}, not {shown(repr(value), 60)}", param=param)  # "5" is no 5


def unforeseen(where: str, error: Exception) -> Refused:
    """The refusal for an error of MENDABLE, which is the server's own; stderr is told where it came from."""
    print(f"mull: error in {where}:", file=sys.stderr)
    traceback.print_exception(error)
    return Refused(f"the server failed: {error}; ask for less, or report it", status=500)
