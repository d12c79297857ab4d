"""An object store for tests: moto's server, which speaks S3."""

from collections.abc import Iterator

import fsspec
import pytest
from moto.server import ThreadedMotoServer

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def serve() -> Iterator[str]:
    """The URL of an empty bucket; credentials and endpoint are in the environment meanwhile."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in CREDENTIALS.items():
            environment.setenv(name, value)
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        # File systems of an earlier server in this process are still remembered.
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        fsspec.filesystem("s3").makedirs("results", exist_ok=True)
        yield "s3://results"
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()
