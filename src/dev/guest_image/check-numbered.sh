#!/bin/sh
# check-numbered DEVICE COUNT: whether the first blocks are the numbered ones from 0 to below COUNT, each of them whole, and
# the 16 MiB behind them zeros.
dd if="$1" bs=4096 count="$2" iflag=fullblock status=none |
    awk -v end="$2" 'length($0) != 4095 || $0 + 0 != n++ { exit 1 } END { if (n != end) exit 1 }' || exit 1
behind=$(dd if="$1" bs=4096 skip="$2" count=4096 iflag=fullblock status=none | tr -d '\0' | wc -c)
[ "$behind" = 0 ]
