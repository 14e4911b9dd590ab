"""The command line without its start: a process that has imported all of it, and forks for each command that a shell
types. `with warm_commands(directory) as prelude`, and the prelude goes before the script.

A command is a process of its own as ever: arguments, directory, environment, standard streams and exit status are those
of the shell. What is spared is a second of imports for each.
"""

import array
import contextlib
import importlib
import json
import os
import pkgutil
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from tests.parts.processes import spawn, stop, wait_ready

ROOT = Path(__file__).resolve().parents[2]
MESSAGE_MAX = 256 * 1024
LEFT_COLD = {"serving", "running", "rebuild_work", "demo", "demo_story"}  # a whole gateway, ClickHouse

ASK = """
import array, json, os, socket, sys
with socket.socket(socket.AF_UNIX) as way:
    way.connect(sys.argv[1])
    told = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
    fds = array.array("i", [0, 1, 2])
    way.sendmsg([len(told).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    way.sendall(told)
    said = way.recv(1)
sys.exit(said[0] if said else 1)
"""


@contextlib.contextmanager
def warm_commands(directory: Path) -> Iterator[str]:
    """What a shell is told first, so that `tidegate` is answered here."""
    path, log = directory / "warm.socket", directory / "warm.log"
    process = spawn([sys.executable, "-m", "tests.parts.warm", str(path)], cwd=ROOT, log=log)
    try:
        wait_ready(path.exists, process, log, deadline_s=60)
        ask = shlex.join([sys.executable, "-I", "-S", "-c", ASK, str(path)])
        yield f'tidegate() {{ {ask} "$@"; }}\n'
    finally:
        stop(process)


def serve(path: Path) -> NoReturn:
    import tidegate_cli
    from tidegate_cli.main import main

    for module in pkgutil.iter_modules(tidegate_cli.__path__):
        if module.name not in LEFT_COLD:
            importlib.import_module(f"tidegate_cli.{module.name}")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children here
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path) + ".new")
    listener.listen(16)
    os.rename(str(path) + ".new", path)
    while True:
        way, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _become(way)
            status = 1
            try:
                main()
                status = 0
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                way.send(bytes([status & 255]))
                os._exit(status & 255)
        way.close()


def _become(way: socket.socket) -> None:
    """The process that the shell asked for."""
    size, rights, _, _ = way.recvmsg(4, socket.CMSG_SPACE(3 * 4))
    told = b""
    while len(told) < min(int.from_bytes(size, "big"), MESSAGE_MAX):
        told += way.recv(MESSAGE_MAX)
    streams = array.array("i", rights[0][2])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    words, directory, environment = json.loads(told)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["tidegate", *words]
    sys.modules["__main__"].__package__ = None  # by which a usage line would name this module


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
