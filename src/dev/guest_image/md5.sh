#!/bin/sh
# md5 DEVICE BYTES: the MD5 sum of the first bytes, read from the device and not from memory.
set -o pipefail
dd if="$1" bs=65536 count="$2" iflag=direct,fullblock,count_bytes status=none | md5sum | cut -d ' ' -f 1
