"""What a client is told when it cannot be answered, as OpenAI's error objects."""

from __future__ import annotations

from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request as Http
from starlette.responses import JSONResponse

from posttrain_jax.errors import UserError

GONE = 499  # the client has closed its connection; nobody reads the answer


class Refused(UserError):
    """A request that cannot be served.

    Attributes:
      status: of the HTTP answer.
      param: the field of the body that is wrong, where it is one.
      code: OpenAI's name for the mistake, where it has one.
    """

    def __init__(self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def body(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, dict]:
    """The error object."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def refused(_: Http, error: Exception) -> JSONResponse:
    """Bad input: one line that says how to mend it."""
    if isinstance(error, Refused):
        return JSONResponse(body(str(error), error.status, error.param, error.code), error.status)
    return JSONResponse(body(str(error), 400), 400)


async def unroutable(http: Http, error: Exception) -> JSONResponse:
    """No such path, or not with this method."""
    assert isinstance(error, HTTPException)
    message = f"{http.method} {http.url.path}: {HTTPStatus(error.status_code).phrase}"
    return JSONResponse(body(message, error.status_code), error.status_code, error.headers)


async def broken(_: Http, error: Exception) -> JSONResponse:
    """A mistake of ours; the traceback is in the server's log."""
    return JSONResponse(body(f"the server has failed: {type(error).__name__}", 500), 500)


HANDLERS = {UserError: refused, HTTPException: unroutable, Exception: broken}
