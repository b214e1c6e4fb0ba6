"""The batch and the context of the tests of the losses serve the methods too."""

from tests.losses.conftest import batch, context

__all__ = ["batch", "context"]
