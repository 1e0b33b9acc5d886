#!/bin/busybox sh
# The first process of a test guest. It takes commands from the serial line, one a line, as
#   TOKEN SECONDS COMMAND
# and answers with what the command prints and then, on a line of its own,
#   TOKEN done STATUS
export PATH=/bin
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
for module in /modules/*.ko; do
    insmod "$module"
done
# What the kernel has to say stays in dmesg: on the line, it would stand in the middle of an answer.
dmesg -n 1
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty raw -echo
printf '\nguest ready\n'
# The lines are read by a child, not by the first process: that one is told of every orphan that ends, and a shell that is
# told something while it reads begins its line anew and forgets what it has of it.
sh -c '
while read -r token seconds command; do
    [ -n "$command" ] || continue
    timeout "$seconds" sh -c "$command" </dev/null
    printf "\n%s done %s\n" "$token" "$?"
done
'
poweroff -f
