"""The AWS SDK for Go as Debian packages it: the program is in `go/`, here it is built and run."""

import os
import subprocess
from pathlib import Path

from conftest import LEDGER
from running import aws_environment
from tap import tap

SOURCE = Path(__file__).parent / "go" / "main.go"


def test_every_action_by_the_sdk(owner, vbs, tmp_path):
    program = tmp_path / "program"
    environment = os.environ | {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": "-buildvcs=false"}
    line = ["go", "build", "-o", program, SOURCE]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    version = subprocess.run([program, "version"], capture_output=True, text=True, timeout=60, check=True)
    LEDGER.client("aws-sdk-go", version.stdout.strip())
    with tap(owner, lambda action: LEDGER.sent("aws-sdk-go", action)) as through:
        environment = aws_environment(through, tmp_path) | {"VBS_INSTANCES": ",".join(vbs.instances)}
        done = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
