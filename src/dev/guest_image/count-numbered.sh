#!/bin/sh
# count-numbered DEVICE: prints how many blocks the device begins with that a writer of numbered blocks has left, found by
# halving; the writer may be going on.
low=0
high=$(($(blockdev --getsize64 "$1") / 4096))
while [ "$low" -lt "$high" ]; do
    middle=$(((low + high) / 2))
    number=$(dd if="$1" bs=4096 skip="$middle" count=1 iflag=direct status=none | tr -d '\0 \n')
    if [ "$number" = "$middle" ]; then
        low=$((middle + 1))
    else
        high=$middle
    fi
done
echo "$low"
