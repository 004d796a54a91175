"""Script of the sandbox: shuts a program in, limits it, and leaves none of its processes behind.

`sandbox.py` runs it by `python -I -S jail.py SETTINGS`, where SETTINGS is a JSON file. It needs the
standard library alone, and three processes:

    the keeper (outside)     ends the init at the limit of wall time, and waits for it
    the init (pid 1 inside)  builds the file system, gives up its rights, reaps orphans; nothing
                             inside can signal it, and when it ends the kernel ends all others
    the program              with limits of CPU time, memory, processes and file sizes

What happened goes to the file `status` of SETTINGS, one JSON object a line: {"ended": the wait
status of the program}, {"timeout": true}, or {"error": why the sandbox couldn't be built}.
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import signal
import sys
from pathlib import Path
from typing import Any

_NAMESPACES = {"mount": 0x20000, "ipc": 0x8000000, "pid": 0x20000000, "network": 0x40000000}
_USER_NAMESPACE = 0x10000000
_BIND, _RECURSIVE, _PRIVATE, _NOSUID, _NODEV, _DETACH = 0x1000, 0x4000, 0x40000, 2, 4, 2
_PDEATHSIG, _DUMPABLE, _SUBREAPER, _NO_NEW_PRIVS = 1, 4, 36, 38  # of prctl
_MOUNT_SETATTR = 442  # a number that all architectures share; pivot_root's is older
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_OPEN_FILES = 64


def main(settings: dict[str, Any]) -> None:
    """Run the program of `settings` and write its status."""
    status = os.open(settings["status"], os.O_WRONLY | os.O_APPEND)
    try:
        settings["uid"] = _other_user()
        _prctl(_PDEATHSIG, signal.SIGKILL)
        if settings["isolated"]:
            _enter_namespaces()
        else:
            _prctl(_SUBREAPER, 1)
            if settings["uid"] is not None:
                os.chown(settings["work"], settings["uid"], settings["uid"])
        init = os.fork()
        if init == 0:
            _run_init(settings, status)
        _keep(init, settings["wall_seconds"], status)
    except OSError as error:
        _tell(status, error=str(error))


def _other_user() -> int | None:
    """Return a user for root's programs: root is under no limit of processes, this user's are its own.

    A container may know 65536 users only: ids that systemd's table of them leaves free.
    """
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(OSError):
        first, _, count = Path("/proc/self/uid_map").read_text().splitlines()[0].split()
        if int(first) + int(count) > 1 << 31:
            return 0x70000000 + os.getpid()
    return 60706 + os.getpid() % 478


def _keep(init: int, seconds: int, status: int) -> None:
    def end(*_: object) -> None:
        _tell(status, timeout=True)
        os.kill(init, signal.SIGKILL)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    os.waitpid(init, 0)  # of a pid namespace: returns when all of it is gone
    signal.setitimer(signal.ITIMER_REAL, 0)
    _end_orphans()


def _end_orphans() -> None:
    """End what a program without a pid namespace left: its orphans are this process's children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    with contextlib.suppress(OSError):
        while pids := children.read_text().split():
            for pid in pids:
                os.kill(int(pid), signal.SIGKILL)
            os.waitpid(-1, 0)


def _run_init(settings: dict[str, Any], status: int) -> None:
    """Be the init: build, give up rights, start the program, wait for it; never returns."""
    try:
        if settings["isolated"]:
            os.setsid()  # a program could stop its process group, and the keeper with it
            _build_root(Path(settings["root"]), settings)
        _give_up_rights(settings["uid"])
        os.chdir("/tmp" if settings["isolated"] else settings["work"])
        for name, text in settings["files"].items():
            Path(name).write_text(text, encoding="utf-8", errors="replace")
        program = os.fork()
        if program == 0:
            _run_program(settings)
        while (ended := os.wait())[0] != program:
            pass
        _tell(status, ended=ended[1])
    except OSError as error:
        _tell(status, error=str(error))
    finally:
        os._exit(0)


def _run_program(settings: dict[str, Any]) -> None:
    try:
        limits = {
            resource.RLIMIT_CPU: settings["cpu_seconds"],
            resource.RLIMIT_AS: settings["memory"],
            resource.RLIMIT_FSIZE: settings["file_bytes"],
            resource.RLIMIT_NOFILE: _OPEN_FILES,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_NPROC: settings["processes"] + _running_processes(settings),
        }
        for name, limit in limits.items():
            # A second of CPU time between the signal that says why and the one that ends.
            soft, hard = limit, limit + (name == resource.RLIMIT_CPU)
            own = resource.getrlimit(name)[1]
            if own != resource.RLIM_INFINITY:
                soft, hard = min(soft, own), min(hard, own)
            resource.setrlimit(name, (soft, hard))
        os.execve(settings["command"][0], settings["command"], settings["environment"])
    except (OSError, ValueError) as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(126)


def _running_processes(settings: dict[str, Any]) -> int:
    """Return how many tasks count against the limit already: it is one of the user, not of a tree."""
    if settings["isolated"] or settings["uid"] is not None:
        return 2  # keeper and init; the user is new, or its count in this user namespace is
    uid = os.getuid()
    tasks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may have ended
            if folder.stat().st_uid == uid:
                tasks += sum(1 for _ in (folder / "task").iterdir())
    return tasks


def _enter_namespaces() -> None:
    """Leave the machine's mounts, processes and network; without root by a user namespace."""
    uid, gid = os.geteuid(), os.getegid()
    flags = sum(_NAMESPACES.values())
    if uid == 0:
        _call("unshare", flags)
        return
    _call("unshare", flags | _USER_NAMESPACE)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _build_root(root: Path, settings: dict[str, Any]) -> None:
    """Make a file system of what Python needs, read-only, and an empty /tmp; leave the old one."""
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    for name in ("tmp", "dev"):
        (root / name).mkdir()
    (root / "dev" / "shm").symlink_to("/tmp")
    for source, target in [*settings["visible"], *((device, device) for device in _DEVICES)]:
        _show(source, root / target.lstrip("/"))
    _set_read_only(root)
    uid = os.geteuid() if settings["uid"] is None else settings["uid"]
    size = f"size={settings['file_bytes']},nr_inodes=4096,mode=700,uid={uid}"
    _mount("tmpfs", root / "tmp", "tmpfs", _NOSUID | _NODEV, size)
    os.chdir(root)
    number = _PIVOT_ROOT.get(platform.machine(), -1)
    _check("pivot_root", _libc.syscall(number, b".", b"."))
    _check("umount2", _libc.umount2(b".", _DETACH))
    os.chdir("/")


def _show(source: str, target: Path) -> None:
    if not Path(source).exists():
        return
    if Path(source).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(source, target, None, _BIND | _RECURSIVE)


def _set_read_only(root: Path) -> None:
    attributes = (ctypes.c_uint64 * 4)(1, 0, 0, 0)  # to set: MOUNT_ATTR_RDONLY; to clear; ...
    at_cwd, recursive = -100, 0x8000
    result = _libc.syscall(
        _MOUNT_SETATTR, at_cwd, os.fsencode(root), recursive, ctypes.byref(attributes), 32
    )
    _check("mount_setattr", result)


def _give_up_rights(uid: int | None) -> None:
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    _prctl(_NO_NEW_PRIVS, 1)
    _prctl(_DUMPABLE, 0)  # the program can't trace the init
    _prctl(_PDEATHSIG, signal.SIGKILL)  # setresuid took it away


def _mount(
    source: str | None, target: str | Path, kind: str | None, flags: int, data: str = ""
) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    _check(f"mount {target}", _libc.mount(*texts, flags, data.encode()))


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        _call("prctl", option, value, 0, 0, 0)


def _call(name: str, *arguments: int) -> None:
    _check(name, getattr(_libc, name)(*map(ctypes.c_ulong, arguments)))


def _check(name: str, result: int) -> None:
    if result != 0:
        raise OSError(f"{name}: {os.strerror(ctypes.get_errno())}")


def _tell(status: int, **event: object) -> None:
    os.write(status, json.dumps(event).encode() + b"\n")


_libc = ctypes.CDLL(None, use_errno=True)
if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
