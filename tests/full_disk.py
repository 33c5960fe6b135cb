"""A disk that is full, for the tests of what is written."""

import errno
import resource
from contextlib import contextmanager
from unittest import mock

from kaleido_jax.runtime import files


@contextmanager
def full_disk():
    """No file may grow beyond 1000 bytes, of which the system says something else than of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with mock.patch.object(files, "FULL_DISK", (*files.FULL_DISK, errno.EFBIG)):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
