#!/bin/sh
# write-numbered DEVICE COUNT [FIRST]: writes blocks of 4096 bytes; block N, at N * 4096, holds the number N in decimal and
# then blanks and a line end. Each is on the device before the next one is begun.
set -o pipefail
first=${3:-0}
awk -v n="$first" -v end="$((first + $2))" 'BEGIN { for (; n < end; n++) printf "%-4095d\n", n }' |
    dd of="$1" bs=4096 seek="$first" iflag=fullblock oflag=direct conv=notrunc status=none
