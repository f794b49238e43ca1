# SPDX-License-Identifier: Apache-2.0
"""The virtual hardware, and the files of a system at rest on it. A change here makes every snapshot useless.

Facts that this leans on, measured on QEMU 7.2: memory in a file that is mapped shared while the snapshot is taken and private when
it is restored makes a restore cost no copying (the migration stream then holds the devices only, x-ignore-shared). Emulation with
several threads breaks cmpxchg16b in this version (the guest panics in __kmalloc), hence -cx16.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

QEMU = "qemu-system-x86_64"
MEMORY_MIB = 2048
PORT = "triaged.test"
KERNEL_ARGUMENTS = (
    "root=/dev/vda rw console=ttyS0 quiet panic=5 mitigations=off init_on_alloc=0 nowatchdog no_timer_check cryptomgr.notests "
    "random.trust_cpu=on systemd.show_status=0"
)


@dataclass(frozen=True)
class Snapshot:
    """A running system at rest: the directory with kernel, initrd, disk.img, ram.img and state."""

    suite: str
    directory: Path

    @property
    def kernel(self) -> Path:
        return self.directory / "kernel"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd"

    @property
    def disk(self) -> Path:
        return self.directory / "disk.img"

    @property
    def ram(self) -> Path:
        return self.directory / "ram.img"

    @property
    def state(self) -> Path:
        return self.directory / "state"


def qemu_command(snapshot: Snapshot, sockets: Path, restore: bool, record: bool) -> list[str]:
    """QEMU with the sockets `agent` and `control` and the file `console.log` in a directory of its own.

    `record` writes to the snapshot's own memory and disk; without it both are left as they are.
    """
    ram = f"memory-backend-file,id=ram,size={MEMORY_MIB}M,mem-path={snapshot.ram},share={'on' if record else 'off'}"
    command = [
        QEMU, "-name", f"triaged-{snapshot.suite}", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "qemu64,-cx16", "-smp", "2",
        "-machine", "pc,memory-backend=ram", "-m", str(MEMORY_MIB), "-object", ram,
        "-kernel", str(snapshot.kernel), "-initrd", str(snapshot.initrd), "-append", KERNEL_ARGUMENTS,
        "-drive", f"file={snapshot.disk},if=none,id=disk,format=raw,cache=unsafe,snapshot={'off' if record else 'on'}",
        "-device", "virtio-blk-pci,drive=disk",
        "-device", "virtio-serial-pci,max_ports=2", "-chardev", f"socket,id=agent,path={sockets}/agent,server=on,wait=off",
        "-device", f"virtserialport,chardev=agent,name={PORT},nr=1",
        "-device", "virtio-rng-pci",
        "-chardev", f"file,id=console,path={sockets}/console.log", "-serial", "chardev:console",
        "-chardev", f"socket,id=control,path={sockets}/control,server=on,wait=off", "-mon", "chardev=control,mode=control",
    ]
    return [*command, "-incoming", "defer"] if restore else command
