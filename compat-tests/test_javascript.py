"""The AWS SDKs for JavaScript, v2 and v3: the programs are in `javascript/`, here they are run."""

import json
import subprocess
from pathlib import Path

import pytest

from conftest import LEDGER
from running import aws_environment
from tap import tap

PROGRAMS = Path(__file__).parent / "javascript"


@pytest.mark.parametrize(("program", "package"), [("v2.js", "aws-sdk"), ("v3.js", "@aws-sdk/client-ec2")])
def test_every_action_by_the_sdk(program, package, owner, vbs, tmp_path):
    about = json.loads((PROGRAMS / "node_modules" / package / "package.json").read_text())
    LEDGER.client(package, about["version"])
    with tap(owner, lambda action: LEDGER.sent(package, action)) as through:
        environment = aws_environment(through, tmp_path) | {
            "AWS_REGION": "us-east-1",
            "AWS_SDK_JS_SUPPRESS_MAINTENANCE_MODE_MESSAGE": "1",
            "VBS_INSTANCES": ",".join(vbs.instances),
        }
        line = ["node", PROGRAMS / program]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
