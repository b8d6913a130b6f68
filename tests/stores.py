"""An object store in this process: what tests read and write as gs://bucket/..."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import pytest

BUCKET = "gs://bucket"


@contextlib.contextmanager
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An emulator of Google's, that gcsfs, orbax and tensorstore are told of; -> a bucket in it."""
    from gcp_storage_emulator.server import create_server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    server._api._httpd.handle_error = lambda *at: None  # a client that has read enough is no error
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks Google itself
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    try:
        yield BUCKET
    finally:
        server.stop()


def picture(file: Path, number: int) -> None:
    """Writes a small image, another for each number."""
    PIL.Image.new("RGB", (8, 8), (20 * number % 256, 99, 255 - number)).save(file)
