#!/bin/sh
# Starts vendetta's agent in a virtual machine: `sh SEED/boot.sh SEED`, as root, at
# each boot. SEED is where the seed disk is mounted. The machine's other disks are
# told apart by their serial numbers, as virtio has them, so that neither udev nor
# the order of the disks matters. What goes wrong is said on the console.
#
# POSIX shell; runs in early boot, where little more than / is mounted.
seed=$1
trap 'cd /; umount -l "$seed" 2>/dev/null || true' EXIT
# workspace_name, workspace_folder, session_user
. "$seed/settings" || exit 1
export PATH="$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
umask 022

say() { echo "vendetta: $*" >/dev/console 2>/dev/null || echo "vendetta: $*"; }

# Prints the device of the disk with serial number $1; the kernel may not have found it yet.
disk() {
    tries=50
    while [ "$tries" -gt 0 ]; do
        for serial in /sys/block/*/serial; do
            if [ "$(cat "$serial" 2>/dev/null)" = "$1" ]; then
                device=${serial%/serial}
                [ ! -b "/dev/${device##*/}" ] || { echo "/dev/${device##*/}"; return; }
            fi
        done
        sleep 0.1 2>/dev/null || sleep 1
        tries=$((tries - 1))
    done
    say "there is no disk $1"
    return 1
}

# The workspace's disk, which outlives the machine's own. It is formatted only when
# nothing was ever written to it, and grown when it has been given more room.
workspace() {
    mkdir -p "$workspace_folder"
    ! mountpoint -q "$workspace_folder" 2>/dev/null || return 0
    device=$(disk vendetta-workspace) || return
    if [ "$(dd if="$device" bs=65536 count=1 2>/dev/null | tr -d '\000' | wc -c)" -eq 0 ]; then
        say "formatting the workspace's disk"
        mkfs.ext4 -q -F -m 0 -L workspace "$device" || { say "the workspace's disk cannot be formatted"; return 1; }
        fresh=1
    fi
    mount -t ext4 -o noatime,discard "$device" "$workspace_folder" || { say "$workspace_folder cannot be mounted"; return 1; }
    # So that it is seen to be empty.
    [ -z "${fresh:-}" ] || rmdir "$workspace_folder/lost+found"
    resize2fs "$device" >/dev/null 2>&1 || true
}

# The user of sessions, where the image has none of this name.
user() {
    case $session_user in
        '' | *[!a-z0-9_-]* | [!a-z_]*) return ;; # none, a number, or with a group
    esac
    ! id "$session_user" >/dev/null 2>&1 || return 0
    say "adding user $session_user"
    shell=/bin/bash
    [ -x "$shell" ] || shell=/bin/sh
    useradd --create-home --shell "$shell" "$session_user" || adduser -D -s "$shell" "$session_user"
    if [ -d /etc/sudoers.d ]; then
        echo "$session_user ALL=(ALL) NOPASSWD:ALL" >"/etc/sudoers.d/90-vendetta-$session_user"
        chmod 440 "/etc/sudoers.d/90-vendetta-$session_user"
    fi
}

with_systemd() {
    mkdir -p /run/systemd/system
    cat >/run/systemd/system/vendetta-agent.service <<'UNIT'
[Unit]
Description=vendetta's agent
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ExecStart=/usr/local/bin/vendetta-agent serve --config /run/vendetta/agent.json
Restart=always
RestartSec=1
KillMode=mixed
TimeoutStopSec=15
LimitNOFILE=1048576
StandardOutput=journal+console
StandardError=inherit
UNIT
    # From the next boot on, nothing has to wait for cloud-init.
    if [ ! -e /etc/systemd/system/vendetta-boot.service ]; then
        cat >/etc/systemd/system/vendetta-boot.service <<'UNIT'
[Unit]
Description=Starts vendetta's agent from the seed disk
DefaultDependencies=no
After=systemd-remount-fs.service
Conflicts=shutdown.target
Before=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'mkdir -p /run/vendetta/seed && mount -o ro,umask=077 LABEL=CIDATA /run/vendetta/seed && exec sh /run/vendetta/seed/boot.sh /run/vendetta/seed'
UNIT
        mkdir -p /etc/systemd/system/sysinit.target.wants
        ln -sf ../vendetta-boot.service /etc/systemd/system/sysinit.target.wants/vendetta-boot.service
    fi
    systemctl daemon-reload
    systemctl start --no-block vendetta-agent.service
}

# Any other init: we look after the agent ourselves.
without_systemd() {
    console=/dev/console
    [ -w "$console" ] || console=/dev/null
    setsid sh -c 'while :; do
        /usr/local/bin/vendetta-agent serve --config /run/vendetta/agent.json
        sleep 1
    done' </dev/null >"$console" 2>&1 &
}

mkdir -p /run/vendetta /usr/local/bin
# Once a boot: cloud-init and our own unit may both come by.
mkdir /run/vendetta/booted 2>/dev/null || exit 0
hostname "$workspace_name" 2>/dev/null || echo "$workspace_name" >/proc/sys/kernel/hostname
workspace
user
agent=$(disk vendetta-agent) || exit 1
# Its end is filled up with zeros to a whole sector, which does not matter.
cat "$agent" >/usr/local/bin/.vendetta-agent.new && chmod 755 /usr/local/bin/.vendetta-agent.new &&
    mv -f /usr/local/bin/.vendetta-agent.new /usr/local/bin/vendetta-agent || { say "the agent cannot be copied"; exit 1; }
(umask 077 && cat "$seed/agent.json" >/run/vendetta/agent.json) || exit 1
say "starting the agent"
if [ -d /run/systemd/system ]; then with_systemd; else without_systemd; fi
