"""Ansible's amazon.aws: ec2_vol, ec2_vol_info, ec2_snapshot, ec2_snapshot_info and ec2_tag. The play is in `ansible/`."""

import json
import subprocess
import sys
from pathlib import Path

from conftest import LEDGER
from running import aws_environment
from tap import tap

HERE = Path(__file__).parent
COLLECTIONS = HERE / ".ansible"


def test_the_modules_for_volumes_snapshots_and_tags(owner, vbs, tmp_path):
    manifest = json.loads((COLLECTIONS / "ansible_collections/amazon/aws/MANIFEST.json").read_text())
    LEDGER.client("amazon.aws", manifest["collection_info"]["version"])
    with tap(owner, lambda action: LEDGER.sent("amazon.aws", action)) as through:
        environment = aws_environment(through, tmp_path) | {
            "AWS_REGION": "us-east-1",
            "ANSIBLE_HOME": str(tmp_path / "ansible"),
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
            "LC_ALL": "C.UTF-8",
        }
        settings = {"instance": vbs.instances[0], "ansible_python_interpreter": sys.executable}
        line = [Path(sys.executable).parent / "ansible-playbook", HERE / "ansible" / "play.yml"]
        line += ["--extra-vars", json.dumps(settings)]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
