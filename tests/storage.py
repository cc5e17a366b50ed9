"""A stand-in for object storage: moto's server on this machine."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import boto3
from botocore.config import Config

MODULE = "import sys; from moto.server import main; main(sys.argv[1:])"


class Storage:
    """A server, in a process that may be stopped as a network may."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.variables = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", MODULE, "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                break
            except OSError:
                assert self.process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
        self.client = boto3.client(
            "s3",
            endpoint_url=self.variables["AWS_ENDPOINT_URL"],
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 5}),
        )
        self.client.create_bucket(Bucket="bucket")

    def upload(self, folder: Path, prefix: str) -> str:
        """What `aws s3 sync` does."""
        for path in folder.iterdir():
            if path.name != ".lmdvid_lock":
                self.client.upload_file(str(path), "bucket", f"{prefix}/{path.name}")
        return f"s3://bucket/{prefix}"

    def close(self):
        self.client.close()
        self.process.kill()
        self.process.wait(60)
