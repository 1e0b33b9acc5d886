#!/bin/sh
# disk SERIAL [SECONDS]: prints the device that has the serial number, waiting for it for so long (10).
left=$((${2:-10} * 10))
while :; do
    for block in /sys/block/vd*; do
        if [ "$(cat "$block/serial" 2>/dev/null)" = "$1" ]; then
            echo "/dev/${block##*/}"
            exit 0
        fi
    done
    [ "$left" -gt 0 ] || exit 1
    left=$((left - 1))
    usleep 100000
done
