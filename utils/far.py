"""Places on other machines, by their addresses: paths whose files are fetched and never written (torch-free)."""

import io
import logging
import os
import re
import time
from functools import cache
from pathlib import Path, PosixPath
from typing import Any
from urllib.parse import urlsplit

from utils.errors import UserError
from utils.packages import optional_package

log = logging.getLogger("isoscope")

LINK = ".url"  # of small files that stand for a far volume
SCHEMES = ("http", "https", "s3")
TRIES, FIRST_WAIT = 5, 0.5  # seconds; each wait is twice as long as the one before
CONNECT, SILENT = 10, 60  # seconds within which a server has to answer, and to go on
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_AGAIN = (408, 425, 429)  # HTTP's states of the 400s that pass; those of the 500s do, too
_systems: dict[tuple[int, str], Any] = {}  # by process: connections do not survive a fork


class FarPath(PosixPath):
    """A file or folder at an address such as https://host/a.zarr; what it holds is only known by asking for it by name.

    No other question that a path answers goes to its server: nothing of it exists on this machine.
    """

    def __str__(self) -> str:
        found = ADDRESS.fullmatch(text := super().__str__())
        return f"{found[1]}://{found[2]}" if found else text

    def __fspath__(self) -> str:
        return str(self)

    def absolute(self) -> "FarPath":
        """Itself."""
        return self

    def resolve(self, strict: bool = False) -> "FarPath":
        """Itself."""
        return self

    def is_file(self, **_: Any) -> bool:
        """Whether its server has a file there."""
        return self.fetch(0, 1) is not None

    def open(self, *_: Any, **__: Any) -> Any:
        """The bytes of the file, as one that was opened for reading."""
        if (found := self.fetch()) is None:
            raise FileNotFoundError(f"{self} is not there")
        return io.BytesIO(found)

    def fetch(self, start: int | None = None, stop: int | None = None) -> bytes | None:
        """The bytes of the file, or some of them.

        Args:
            start: the first; below 0: so many at the end.
            stop: the first that is not read; not where start is below 0.

        Returns:
            None: the server says that there is no such file.

        Raises:
            UserError: it refuses, or does not answer as it should however often it is asked.
        """
        if start and start > 0 and stop is None:  # whether a server gave this part, or all, could not be told by its length
            return None if (whole := self.fetch()) is None else whole[start:]
        said = ""
        for number in range(TRIES):
            if number:
                wait = FIRST_WAIT * 2 ** (number - 1)
                log.info("%s: %s; asking again in %g s", self, said, wait)
                time.sleep(wait)
            try:
                return self._cut(_system(self).cat_file(str(self), start=start, end=stop), start, stop)
            except FileNotFoundError:
                return None
            except (UserError, MemoryError):
                raise
            except Exception as error:  # of the packages for http and s3, and of those below them
                status = getattr(error, "status", None) or (403 if isinstance(error, PermissionError) else 0)
                said = f"status {status}" if status else " ".join(str(error).split()) or type(error).__name__
                if status in (401, 403):
                    raise UserError(
                        f"{self}: the server refuses it ({said}); it may need an account, or not exist. For s3 the variables of "
                        "AWS name account and server (AWS_PROFILE, AWS_ACCESS_KEY_ID …, AWS_ENDPOINT_URL)"
                    ) from error
                if 400 <= status < 500 and status not in _AGAIN:
                    raise UserError(f"{self}: the server does not give it ({said}); check the address") from error
        raise UserError(
            f"{self}: its server was asked {TRIES} times and does not give it ({said}); check the address and the network, and "
            "run the same command again"
        )

    def _cut(self, found: bytes, start: int | None, stop: int | None) -> bytes:
        """What was asked for, of the whole file where its server knows no parts."""
        wanted = -start if start and start < 0 else (len(found) if stop is None else stop) - (start or 0)
        if len(found) <= wanted:
            return found
        _say_whole(str(self.parents[-3]))
        return found[start:stop]


def path_of(given: Path | str) -> Path:
    """A path on this machine, or the FarPath of an address (also where ``Path`` has made one slash of two).

    Raises:
        UserError: an address that cannot be read by.
    """
    if isinstance(given, FarPath):
        return given
    if not (found := ADDRESS.fullmatch(str(given))):
        return Path(given)
    scheme, rest = found[1].lower(), found[2].rstrip("/")
    if scheme not in SCHEMES:
        raise UserError(f"{given}: {scheme}:// is not read; {', '.join(f'{one}://' for one in SCHEMES)} are")
    parts = urlsplit(f"{scheme}://{rest}")
    if not parts.hostname or not parts.path.strip("/") or "?" in rest or "#" in rest or "@" in parts.netloc:
        raise UserError(
            f"{scheme}://…: an address names a server (of s3 a bucket) and a folder, without ? and # and without a password, "
            "such as https://host/folder/scan.ome.zarr; accounts belong into ~/.netrc, or the variables of AWS"
        )
    return FarPath(f"{scheme}:/{rest}")


def existing(given: Path | str) -> Path:
    """As :func:`path_of`; a UserError says that there is nothing of that name on this machine. Servers are not asked."""
    path = path_of(given)
    if not isinstance(path, FarPath) and not path.exists():
        raise UserError(f"{path}: no such file or folder")
    return path


def write_link(place: Path, to: FarPath) -> None:
    """A file that stands for a far volume, as browsers write one for an address."""
    place.write_text(f"[InternetShortcut]\nURL={to}\n", encoding="utf-8")


def linked(file: Path) -> FarPath:
    """The far volume that a file stands for; a UserError: it names none."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    found = next((path_of(line[4:].strip()) for line in lines if line.upper().startswith("URL=")), None)
    if not isinstance(found, FarPath):
        raise UserError(f"{file}: a file that ends in {LINK} names a volume in a line URL=https://…; this one does not")
    return found


@cache
def _say_whole(server: str) -> None:
    log.warning("%s gives whole files where parts are asked for, so that reading takes longer", server)


def _system(path: FarPath) -> Any:
    """The connections of this process to the servers of a scheme."""
    scheme = str(path).partition(":")[0]
    if (key := (os.getpid(), scheme)) not in _systems:
        fsspec = optional_package("fsspec", path, "cloud", "reading from afar")
        _systems[key] = fsspec.filesystem(scheme, skip_instance_cache=True, **(_s3(path) if scheme == "s3" else _http(path)))
    return _systems[key]


def _http(path: FarPath) -> dict[str, Any]:
    aiohttp = optional_package("aiohttp", path, "cloud", "reading from afar")
    limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENT)
    return {"client_kwargs": {"timeout": limits, "trust_env": True}}  # proxies, and accounts of ~/.netrc


def _s3(path: FarPath) -> dict[str, Any]:
    """Without an account buckets are asked that are open to all."""
    optional_package("s3fs", path, "cloud", "reading from s3")
    from botocore.session import Session

    limits = {"connect_timeout": CONNECT, "read_timeout": SILENT, "retries": {"total_max_attempts": 1}}
    return {"anon": Session().get_credentials() is None, "config_kwargs": limits}
