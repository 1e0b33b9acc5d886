"""moto's server with volumes in it, put there in its own process: its API makes some sixty a second.

The volumes are those of the benchmark's world: the same ids, tags and attachments. Arguments: how many, and the port.
"""

import hashlib
import sys
from types import SimpleNamespace

from moto.ec2.models import ec2_backends
from moto.ec2.models.elastic_block_store import Volume, VolumeAttachment
from moto.server import main


def digits(number):
    return "0" + hashlib.md5(str(number).encode()).hexdigest()[:16]


def fill(backend, count):
    zone = backend.get_zone_by_name("us-east-1a")
    for n in range(1, count + 1):
        name = f"vol-{digits(n)}"
        volume = Volume(backend, name, 1 + n % 100, zone, volume_type="gp3", iops=3000, throughput=125)
        if n % 5 == 0:
            machine = SimpleNamespace(id=f"i-{digits(n // 20)}")
            volume.attachment = VolumeAttachment(volume, machine, f"/dev/sd{chr(98 + n // 5 % 10)}", "attached")
        backend.volumes[name] = volume
        volume.add_tags({"Name": f"volume {n}", "environment": "production", "team": f"team {n % 10}"})


fill(ec2_backends["123456789012"]["us-east-1"], int(sys.argv[1]))
main(["-H", "127.0.0.1", "-p", sys.argv[2]])
