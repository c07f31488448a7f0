"""Whether a folder lies on a network file system, where SQLite's locks can't be trusted."""

from __future__ import annotations

import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mounts")  # Linux alone has it; elsewhere nothing is refused
_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|ncpfs|afs|9p|ceph|lustre|beegfs|glusterfs|gpfs|ocfs2|gfs2|davfs|"
    r"fuse\.(sshfs|s3fs|rclone|glusterfs|davfs2?|ceph.*|gcsfuse|goofys|mount-s3|smbnetfs|blobfuse2?)"
)


def network_filesystem(folder: Path, mounts: Path = _MOUNTS) -> str | None:
    """The type of the network file system that a folder lies on, or None if it is local."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    folder = folder.resolve()
    kind, depth = "", -1
    for line in lines:
        _, mount_point, mounted, *_ = line.split(" ")
        point = Path(_unescape(mount_point))
        # Of two mounts on one point the later hides the earlier.
        if folder.is_relative_to(point) and len(point.parts) >= depth:
            kind, depth = mounted, len(point.parts)
    return kind if _NETWORK.fullmatch(kind) else None


def _unescape(mount_point: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), mount_point)
