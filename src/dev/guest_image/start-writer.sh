#!/bin/sh
# start-writer DEVICE [PLACES]: writes numbered blocks as write-numbered does, from 0 up, until stop-writer. At the end of the
# device it goes on at its beginning, and the numbers go on too: block K of B then holds the last number written that leaves K
# when divided by B.
#
# With PLACES, an even number, it writes 1, 2, 3 ... into so many blocks that are 1 MiB apart, by turns in the lower and in the
# upper half, and comes round to each again and again: a copy that is not of one instant has numbers that do not follow on,
# which check-places finds. /tmp/writer.done has each number that is on the device, a line each.
if [ -n "$2" ]; then
    setsid sh -c '
        n=1 half=$(($1 / 2))
        while printf "%-4095d\n" "$n" | dd of="$0" bs=4096 seek=$(((n % 2 * half + n / 2 % half) * 256)) \
            iflag=fullblock oflag=direct conv=notrunc status=none
        do
            echo "$n"
            n=$((n + 1))
        done
    ' "$1" "$2" </dev/null >/tmp/writer.done 2>/tmp/writer.log &
    echo $! >/tmp/writer.pid
    exit
fi
blocks=$(($(blockdev --getsize64 "$1") / 4096))
[ "$blocks" -gt 0 ] || exit 1
setsid sh -c '
    awk "BEGIN { for (n = 0; ; n++) printf \"%-4095d\n\", n }" |
        while dd of="$0" bs=4096 count="$1" iflag=fullblock oflag=direct conv=notrunc status=none; do :; done
' "$1" "$blocks" </dev/null >/tmp/writer.log 2>&1 &
echo $! >/tmp/writer.pid
