"""Files that a reader sees whole or not at all, and names that are safe in a folder.

It does not lock: two runs that write one folder overwrite each other, file by file.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from memcg_gym.enforcer.files import replace_file
from memcg_gym.envs.contract.errors import ConfigError


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; makes its folder where it is missing.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def safe_name(text: str) -> str:
    """A file name for any text: its plain characters, and a hash where others were dropped.

    Example:
        >>> safe_name("host-aware"), safe_name("tmo:a=1")
        ('host-aware', 'tmo_a_1-950ad690')
    """
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_.")
    if plain == text:
        return text
    return f"{plain[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def digest_of(paths: list[Path], root: Path) -> str:
    """SHA-256 over the names (relative to ``root``) and contents of some files.

    Raises:
        ConfigError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        name = path.relative_to(root).as_posix().encode()
        digest.update(len(name).to_bytes(4, "little") + name)
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()
