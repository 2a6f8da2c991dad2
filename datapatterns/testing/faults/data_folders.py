"""A server's files, which belong to the account that it runs under."""

import os
import shutil
from pathlib import Path


def clear_folder(folder: Path) -> None:
    """Remove all that is in ``folder``."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def copy_into(target: Path, source: Path) -> None:
    """Copy all that is in ``source``; each copy belongs to whom its original belongs to."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    if os.geteuid() != 0:
        return  # an ordinary account runs its own servers
    for original in source.rglob("*"):
        owner = original.stat()
        os.chown(target / original.relative_to(source), owner.st_uid, owner.st_gid)
