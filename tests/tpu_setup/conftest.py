"""A cloud in a folder, and scripts that are called in it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ROOT / "tpu_setup"
STUBS = Path(__file__).parent / "stubs"


class Cloud:
    """What the stand-ins see."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "fail").mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        self.environment = os.environ | {
            "PATH": f"{STUBS}:{os.environ['PATH']}",
            "CLOUD": str(folder),
            "REAL_PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "COORDINATOR": coordinator,
            "XDG_RUNTIME_DIR": str(folder),
            "POD": "pod",
            "ZONE": "us-x1-b",
            "TYPE": "v5p-16",
            "BUCKET": "bucket",
            "HOSTS": "4",
            "WAIT": "0.1",
            "INTERVAL": "0.5",
            "GRACE": "20",
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
        }

    def start(self, script: str, *words: str, **settings: str) -> subprocess.Popen:
        return subprocess.Popen(
            [SCRIPTS / f"{script}.sh", *words],
            env=self.environment | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def call(self, script: str, *words: str, **settings: str) -> subprocess.CompletedProcess:
        process = self.start(script, *words, **settings)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def fail(self, verb: str, times: int) -> None:
        (self.folder / "fail" / verb).write_text(str(times))

    def set_state(self, state: str) -> None:
        (self.folder / "pods" / "pod" / "state").write_text(state)

    def created(self) -> int:
        path = self.folder / "created"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def hosts(self) -> list[Path]:
        return sorted((self.folder / "pods" / "pod").glob("host*"))


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.call("teardown")
