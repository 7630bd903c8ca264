"""Exceptions: one class a code of the library, each with `code` and the library's sentence as its text."""

import enum


class Errc(enum.IntEnum):
    """The frozen codes, shared with C++ and C."""

    INVALID_ARGUMENT = 1
    OUT_OF_PAGES = 2
    OUT_OF_MEMORY = 3
    UNSUPPORTED = 4
    CLOSED = 5
    BUSY = 6
    OS_ERROR = 7
    CANCELLED = 8
    NOT_FOUND = 9
    CORRUPT = 10


class Error(Exception):
    """Anything that the library refused. Nothing changed, but outputs of Cancelled and OutOfMemory are unspecified."""

    code: Errc


class InvalidArgument(Error, ValueError):
    """A size, range or value is wrong. Refuse the request; retrying cannot help."""

    code = Errc.INVALID_ARGUMENT


class OutOfPages(Error):
    """The pool is full. Normal under load: wait, preempt or evict, then retry."""

    code = Errc.OUT_OF_PAGES


class OutOfMemory(Error, MemoryError):
    """The host refused memory for bookkeeping. Shed load."""

    code = Errc.OUT_OF_MEMORY


class Unsupported(Error):
    """No kernel for this combination on this CPU. Choose another dtype or target."""

    code = Errc.UNSUPPORTED


class Closed(Error):
    """The object was closed or committed before. A bug in the caller."""

    code = Errc.CLOSED


class Busy(Error):
    """The object is in a step, or another thread is using it. Finish that first."""

    code = Errc.BUSY


class OsCallFailed(Error, OSError):
    """The operating system refused a call."""

    code = Errc.OS_ERROR


class Cancelled(Error):
    """The caller's task group was cancelled; outputs are unspecified."""

    code = Errc.CANCELLED


class NotFound(Error, LookupError):
    """Nothing is known under that name or id."""

    code = Errc.NOT_FOUND


class Corrupt(Error):
    """A file or byte stream does not hold what it claims. Discard it."""

    code = Errc.CORRUPT


_CLASSES = {cls.code: cls for cls in Error.__subclasses__()}


def make(code: int, what: str) -> Error:
    """The exception of a code; called by the extension module."""
    return _CLASSES.get(code, Error)(what)
