"""The AWS SDK for Rust: the program is in `rust/`. Only with `--with-rust`: to build the SDK takes minutes, and 7 GB of memory."""

import re
import subprocess
from pathlib import Path

from conftest import LEDGER
from running import TARGET, aws_environment
from tap import tap

SOURCE = Path(__file__).parent / "rust"


def test_the_main_job_by_the_sdk(owner, vbs, tmp_path):
    target = TARGET / "compat-rust"
    line = ["cargo", "build", "--locked", "--jobs", "1", "--manifest-path", SOURCE / "Cargo.toml", "--target-dir", target]
    subprocess.run(line, timeout=7200, check=True)
    LEDGER.client("aws-sdk-ec2", re.search(r'name = "aws-sdk-ec2"\nversion = "(.+?)"', (SOURCE / "Cargo.lock").read_text())[1])
    with tap(owner, lambda action: LEDGER.sent("aws-sdk-ec2", action)) as through:
        environment = aws_environment(through, tmp_path) | {"VBS_INSTANCES": ",".join(vbs.instances)}
        program = target / "debug" / "main-flow"
        done = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
