"""A program whose imports are done already: `python forking.py SOCKET SCRIPT ARGS` runs a script as `python` would.

`serve SOCKET` imports torch once, and forks for each. For commands that a test hands on to something else, which starts
them itself; `preloaded.py` is for those that the test starts.
"""

import os
import socket
import sys
from typing import NoReturn

if __name__ == "__main__" and sys.argv[1] != "serve":
    # Nothing more is imported here: this process waits, passes the exit code on, and is to begin at once.
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(sys.argv[1])
        fields = [
            os.getcwd(),  # noqa: PTH109 - pathlib takes longer to import than all the rest
            "\1".join(sys.argv[2:]),
            "\1".join(f"{k}={v}" for k, v in os.environ.items()),
        ]
        socket.send_fds(server, ["\0".join(fields).encode() + b"\0\0"], [1, 2])
        sys.exit(int(server.recv(16) or b"1"))


def child(connection: socket.socket) -> NoReturn:
    import runpy
    import traceback

    data, outputs, _, _ = socket.recv_fds(connection, 1 << 20, 2)
    while not data.endswith(b"\0\0"):
        data += connection.recv(1 << 20)
    folder, argv, environment = data.decode().removesuffix("\0\0").split("\0")
    for number, output in enumerate(outputs, 1):
        os.dup2(output, number)
    code = 1
    # The one that answers is another process: a training may leave by `os._exit`, or be killed.
    if not (pid := os.fork()):
        os.setsid()
        connection.close()
        os.chdir(folder)
        os.environ.clear()
        for name, _, value in (pair.partition("=") for pair in environment.split("\1")):
            os.environ[name] = value
        sys.argv = argv.split("\1")
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:  # noqa: BLE001 - it is shown, and the exit code tells
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def serve(path: str) -> NoReturn:
    import gc
    import importlib
    import signal

    for module in ("torch._dynamo", "holdfast.loop.checkpointer"):
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        print("serving", flush=True)
        while True:
            connection, _ = server.accept()
            if not os.fork():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                server.close()
                child(connection)
            connection.close()


if __name__ == "__main__":
    serve(sys.argv[2])
