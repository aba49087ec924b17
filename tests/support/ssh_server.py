"""A real sshd on a loopback port with its own host key, user key and configuration."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None)


@dataclass(frozen=True)
class SshServer:
    """`config` is what `ssh -F` takes: it knows the host key and has the user's key. home: where runs keep files."""

    port: int
    folder: Path
    config: Path
    home: Path
    process: subprocess.Popen[bytes]

    def forget_host_key(self) -> Path:
        """Return a configuration that does not know the server's host key."""
        path = self.folder / "stranger_config"
        path.write_text(self.config.read_text().replace("known_hosts", "no_known_hosts"))
        return path


@contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """Run a server whose sessions have `folder / home` as their cache."""
    assert SSHD is not None
    folder.mkdir(parents=True, exist_ok=True)
    home = folder / "home"
    home.mkdir()
    for name in ("host_key", "user_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
    port = _free_port()
    kind, key, *_ = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile {folder}/sshd.pid\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
        f"KbdInteractiveAuthentication no\nUsePAM no\nSetEnv XDG_CACHE_HOME={home}\nPermitRootLogin prohibit-password\n"
    )
    (folder / "config").write_text(
        f"Host *\n  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
        f"  IdentityFile {folder}/user_key\n  IdentitiesOnly yes\n  IdentityAgent none\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd asks for it when it runs as root
    log = open(folder / "sshd.log", "wb")  # noqa: SIM115 - the server writes to it as long as it lives
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        _wait_for(port, process, folder)
        yield SshServer(port, folder, folder / "config", home, process)
    finally:
        process.terminate()
        process.wait()
        log.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    for _ in range(100):
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"sshd did not start: {(folder / 'sshd.log').read_text()}")
