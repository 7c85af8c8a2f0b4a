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

# Ends the machine, whose console then tells why (the gateway reads it): without what
# failed there would be no agent, or a workspace whose files are lost at the next rebuild.
fail() {
    say "cannot start: $*"
    sync
    sleep 1 # until the console has said it
    echo o >/proc/sysrq-trigger || poweroff -f
    exit 1
}

mount_workspace() { mount -t ext4 -o noatime,discard "$device" "$workspace_folder"; }

# Whether nothing was ever written to a disk; 2: that cannot be told. What a file system
# begins with is in its first MiB, all of which must have been read.
blank() {
    head=/run/vendetta/head
    dd if="$1" of="$head" bs=65536 count=16 2>/dev/null || return 2
    [ "$(wc -c <"$head")" -eq 1048576 ] || return 2
    [ "$(tr -d '\000' <"$head" | wc -c)" -eq 0 ]
}

# The workspace's disk, which outlives the machine's own. It is formatted only when
# nothing was ever written to it, or when that was begun and cut off.
workspace() {
    device=$(disk vendetta-workspace) || fail "the workspace's disk is not there"
    unfinished=/var/lib/vendetta/formatting
    blank "$device"
    case $? in
        0) fresh=1 ;;
        1) [ ! -e "$unfinished" ] || fresh=1 ;;
        *) fail "the workspace's disk $device cannot be read; is its file on the node, workspace.qcow2, whole?" ;;
    esac
    rm -f "$head"
    if [ -n "${fresh:-}" ]; then
        say "formatting the workspace's disk"
        mkdir -p "${unfinished%/*}" && : >"$unfinished" && sync || fail "nothing can be written in ${unfinished%/*}"
        said=$(mkfs.ext4 -q -F -m 0 -L workspace "$device" 2>&1) ||
            fail "the workspace's disk cannot be formatted: $said; the image needs mkfs.ext4 (package e2fsprogs)"
        # As long as that is there, the disk would be made anew at the next boot.
        sync && rm "$unfinished" && sync || fail "$unfinished cannot be removed"
    fi
    mkdir -p "$workspace_folder" || fail "$workspace_folder cannot be made"
    said=$(mount_workspace 2>&1) || { e2fsck -p "$device" >/dev/null 2>&1; said=$(mount_workspace 2>&1); } ||
        fail "the workspace's disk cannot be mounted at $workspace_folder: $said;" \
            "its file is workspace.qcow2 in the workspace's folder on the node"
    if [ -n "${fresh:-}" ]; then
        # So that it is seen to be empty.
        rmdir "$workspace_folder/lost+found"
    else
        # The config may have given it more room since.
        said=$(resize2fs "$device" 2>&1) || say "the workspace's file system has not been grown: $said"
    fi
}

# The root file system takes all of its disk. Cloud images see to that with growpart,
# which may be about to run; on others it is done here.
root() {
    ! command -v growpart >/dev/null || return 0
    partition=$(readlink -f "/sys/dev/block/$(mountpoint -d /)") && [ -s "$partition/partition" ] || return 0
    whole=${partition%/*}
    read -r start <"$partition/start" && read -r size <"$partition/size" && read -r all <"$whole/size" || return 0
    # A GUID partition table has its copy at the end.
    [ $((all - start - size)) -gt 2048 ] || return 0
    say "growing the root file system"
    read -r number <"$partition/partition"
    said=$( { echo ', +' | sfdisk -q --no-reread --no-tell-kernel -N "$number" "/dev/${whole##*/}" &&
        partx -u --nr "$number" "/dev/${whole##*/}" && resize2fs "/dev/${partition##*/}"; } 2>&1) ||
        say "the root file system has not been grown: $said"
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
    # As many files as systemd's unit allows.
    setsid sh -c 'ulimit -n 1048576
    while :; do
        /usr/local/bin/vendetta-agent serve --config /run/vendetta/agent.json
        sleep 1
    done' </dev/null >"$console" 2>&1 &
}

mkdir -p /run/vendetta /usr/local/bin
# Once a boot: cloud-init and our own unit may both come by.
mkdir /run/vendetta/booted 2>/dev/null || exit 0
hostname "$workspace_name" 2>/dev/null || echo "$workspace_name" >/proc/sys/kernel/hostname
root
# Before the disk is mounted, which may be in the home directory.
user
workspace
agent=$(disk vendetta-agent) || fail "the disk with the agent is not there"
# Its end is filled up with zeros to a whole sector, which does not matter.
cat "$agent" >/usr/local/bin/.vendetta-agent.new && chmod 755 /usr/local/bin/.vendetta-agent.new &&
    mv -f /usr/local/bin/.vendetta-agent.new /usr/local/bin/vendetta-agent || fail "the agent cannot be copied to /usr/local/bin"
(umask 077 && cat "$seed/agent.json" >/run/vendetta/agent.json) || fail "the agent's config cannot be read from the seed"
say "starting the agent"
if [ -d /run/systemd/system ]; then with_systemd; else without_systemd; fi
