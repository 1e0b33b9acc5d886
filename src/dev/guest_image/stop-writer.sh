#!/bin/sh
# stop-writer: ends what start-writer began, and returns when its last write is done.
group=$(cat /tmp/writer.pid) || exit 1
kill -- "-$group" 2>/dev/null
while kill -0 -- "-$group" 2>/dev/null; do
    usleep 50000
done
rm -f /tmp/writer.pid
