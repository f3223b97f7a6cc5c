"""Runs within the sandbox: runs a command, ends all it started, then sends the working folder's text files as JSON.

    python collect.py DESCRIPTOR SECONDS BYTES COMMAND ...

Stands alone. What it sends is as little to be trusted as the program, which runs under the same user.
"""

import json
import os
import signal
import stat
import subprocess
import sys


def main() -> int:
    """The command's exit status."""
    descriptor, seconds, limit = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    try:
        status = subprocess.run(sys.argv[4:], timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        status = 128 + signal.SIGKILL
    except OSError as error:
        print(error, file=sys.stderr)
        status = 127
    try:
        os.kill(-1, signal.SIGKILL)  # all but this process and the namespace's first: nothing changes from here on
    except ProcessLookupError:
        pass
    with os.fdopen(descriptor, "w") as out:
        json.dump(text_files(".", limit), out)
    return status if status >= 0 else 128 - status


def text_files(root: str, limit: int) -> dict[str, str]:
    """Text by path of the regular UTF-8 files below a folder, as many as fit into a limit in bytes; no links."""
    found, folders = {}, [""]
    while folders:
        folder = folders.pop()
        try:
            entries = sorted(os.scandir(os.path.join(root, folder)), key=lambda entry: entry.name)
        except OSError:  # the program made it unreadable
            continue
        for entry in entries:
            path = os.path.join(folder, entry.name)
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.is_file(follow_symlinks=False):
                content = read(os.path.join(root, path), limit)
                text = text_of(path, content)
                if content is not None and text is not None:
                    found[path] = text
                    limit -= len(content)
    return found


def read(path: str, limit: int) -> bytes | None:
    """A regular file's content; None if it is larger than the limit or cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        return file.read() if stat.S_ISREG(about.st_mode) and about.st_size <= limit else None


def text_of(path: str, content: bytes | None) -> str | None:
    """The content as text; None if it or its path is not text."""
    try:
        path.encode()
        return None if content is None else content.decode()
    except UnicodeError:
        return None


if __name__ == "__main__":
    sys.exit(main())
