"""Arrays for outputs, made in the library that the caller's own array comes from."""

from typing import Any


def empty_beside(array: Any, shape: tuple[int, ...]) -> Any:
    """An uninitialised array of this shape, of the same library and element type as `array`; called by the extension."""
    if type(array).__module__.partition(".")[0] == "torch":
        import torch

        return torch.empty(shape, dtype=array.dtype)
    import numpy

    return numpy.empty(shape, dtype=getattr(array, "dtype", numpy.float32))
