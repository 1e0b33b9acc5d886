#!/bin/sh
# check-places DEVICE PLACES: prints the highest number that start-writer with PLACES has left on the device, and whether the
# device is as it was at one instant: each number up to it that has not been written over is there, in its place, and no other.
place=0
while [ "$place" -lt "$2" ]; do
    dd if="$1" bs=4096 skip=$((place * 256)) count=1 iflag=direct status=none || exit 1
    place=$((place + 1))
done | awk -v places="$2" '
    length($0) != 4095 || $0 + 0 < 1 { bad = 1 }
    { found[NR - 1] = $0 + 0; if ($0 + 0 > last) last = $0 + 0 }
    END {
        for (n = last - places + 1; n <= last; n++)
            if (found[n % 2 * places / 2 + int(n / 2) % (places / 2)] != n) bad = 1
        print last
        exit bad || NR != places
    }'
