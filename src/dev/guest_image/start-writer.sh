#!/bin/sh
# start-writer DEVICE: writes numbered blocks as write-numbered does, from 0 up, until stop-writer. At the end of the device
# it goes on at its beginning, and the numbers go on too: block K of B then holds the last number written that leaves K when
# divided by B.
blocks=$(($(blockdev --getsize64 "$1") / 4096))
[ "$blocks" -gt 0 ] || exit 1
setsid sh -c '
    awk "BEGIN { for (n = 0; ; n++) printf \"%-4095d\n\", n }" |
        while dd of="$0" bs=4096 count="$1" iflag=fullblock oflag=direct conv=notrunc status=none; do :; done
' "$1" "$blocks" </dev/null >/tmp/writer.log 2>&1 &
echo $! >/tmp/writer.pid
