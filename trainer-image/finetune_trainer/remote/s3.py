"""Reads from and writes to object stores that speak S3, through Arrow's client, which is the AWS SDK's.

What it raises becomes a few clear errors. They have its codes and none of its words, which may hold the endpoint.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from finetune_api.exit_codes import ExitCode
from finetune_api.values import OBJECT_STORE
from finetune_trainer import weights
from finetune_trainer.errors import TrainerError
from finetune_trainer.stop import StopFlag

SCHEME = OBJECT_STORE
_PART_BYTES = 16 * 2**20
_NUM_FILES_AT_ONCE = 8
_NUM_ATTEMPTS = 5
_LONGEST_NAME = 255
_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
# Where else the AWS SDK finds credentials: a role of the pod's account, a profile of this machine's user.
_OTHER_CREDENTIALS = (
    "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE",
)  # fmt: skip
_NO_METADATA = "AWS_EC2_METADATA_DISABLED"
_REGION = re.compile(r"[a-z0-9-]{1,63}")
_PRINTABLE = re.compile(r"[!-~]*")
# "AWS Error ACCESS_DENIED during ...", "AWS Error UNKNOWN (HTTP status 400) during ... ExceptionName: ExpiredToken"
_CODE = re.compile(r"AWS Error ([A-Z_]+)")
_STATUS = re.compile(r"HTTP status (\d{3})")
_NAME = re.compile(r"ExceptionName: ([A-Za-z]{1,60})")
_REFUSED_CODES = {
    "ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_SIGNATURE", "EXPIRED_TOKEN",
    "INVALID_CLIENT_TOKEN_ID", "UNRECOGNIZED_CLIENT", "MISSING_AUTHENTICATION_TOKEN", "REQUEST_EXPIRED",
    "INCOMPLETE_SIGNATURE", "REQUEST_TIME_TOO_SKEWED", "OPT_IN_REQUIRED",
    "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "AccountProblem", "AllAccessDisabled", "InvalidSecurity",
}  # fmt: skip
_ABSENT_CODES = {"NO_SUCH_BUCKET", "NO_SUCH_KEY", "RESOURCE_NOT_FOUND", "InvalidBucketName"}
_REGION_CODES = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a bucket as it was when it was looked at."""

    name: str
    """Below the place that was asked about."""
    size: int
    version: str
    """Changes when the file does: its ETag, or else the time that it was written."""


class Place:
    """What an s3:// URI names: a file, or all that is below it."""

    def __init__(self, uri: str, code: ExitCode) -> None:
        """`code` is for what is not there. Raises TrainerError when there are no credentials to try with."""
        self.uri = uri
        self._code = code
        self._path = uri.removeprefix(SCHEME).rstrip("/")
        if "//" in self._path:
            raise TrainerError(code, f"{uri}: has an empty folder in it", "write one / between two names")
        self._system = _connect(uri)

    @property
    def is_bucket(self) -> bool:
        """Whether it is a whole bucket."""
        return "/" not in self._path

    def file(self) -> RemoteFile | None:
        """The file of this very name, if there is one. Raises TrainerError."""
        return self._look("")

    def names(self, recursive: bool = False) -> dict[str, int]:
        """The files below it with their sizes. Raises TrainerError."""
        with self._errors():
            from pyarrow.fs import FileSelector, FileType

            found = self._system.get_file_info(FileSelector(self._path, recursive=recursive, allow_not_found=True))
        return {info.path.removeprefix(f"{self._path}/"): info.size for info in found if info.type == FileType.File}

    def files(self, names: Sequence[str]) -> list[RemoteFile]:
        """Files below it. Raises TrainerError."""
        with ThreadPoolExecutor(_NUM_FILES_AT_ONCE) as pool:
            found = list(pool.map(self._look, names))
        return [file for file in found if file is not None]

    def download(self, files: Sequence[RemoteFile], directory: Path, stop: StopFlag) -> None:
        """Write files below it into a directory. Raises TrainerError, and OSError where the disk refuses."""
        with ThreadPoolExecutor(_NUM_FILES_AT_ONCE) as pool:
            work = [pool.submit(self._download, file, directory / Path(file.name).name, stop) for file in files]
            try:
                for one in work:
                    one.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def download_as(self, file: RemoteFile, path: Path, stop: StopFlag) -> None:
        """Write the file of this very name. Raises TrainerError, and OSError where the disk refuses."""
        self._download(file, path, stop)

    def read_small(self, name: str) -> bytes:
        """The content of a small file below it. Raises TrainerError."""
        with self._errors(), self._system.open_input_file(self._below(name)) as source:
            return bytes(source.read())

    def upload(self, path: Path, name: str, stop: StopFlag) -> None:
        """Write a local file below it. Raises TrainerError."""
        with path.open("rb") as source, self._errors(), self._system.open_output_stream(self._below(name)) as sink:
            while part := source.read(_PART_BYTES):
                stop.check(f"{self.uri} was being uploaded")
                sink.write(part)

    def check_writable(self, name: str) -> None:
        """Raise TrainerError unless a file can be written below it; better before hours of training than after."""
        with self._errors():
            with self._system.open_output_stream(self._below(name)):
                pass
            self._system.delete_file(self._below(name))

    def remove(self, name: str) -> None:
        """Remove a file below it. Raises TrainerError."""
        with self._errors():
            self._system.delete_file(self._below(name))

    def _below(self, name: str) -> str:
        return f"{self._path}/{name}" if name else self._path

    def _look(self, name: str) -> RemoteFile | None:
        with self._errors():
            from pyarrow.fs import FileType

            info = self._system.get_file_info(self._below(name))
            if info.type != FileType.File:
                return None
            with self._system.open_input_file(self._below(name)) as source:
                etag = source.metadata().get("ETag", b"").decode(errors="replace")
        return RemoteFile(name, info.size, etag or str(info.mtime_ns))

    def _download(self, file: RemoteFile, path: Path, stop: StopFlag) -> None:
        size = 0
        with self._errors():
            source = self._system.open_input_file(self._below(file.name))
        with path.open("wb") as sink:
            while size < file.size:
                stop.check(f"{self.uri} was being downloaded")
                with self._errors():
                    part = source.read_at(_PART_BYTES, size)
                if not part:
                    break
                size += sink.write(part)
        if size != file.size or self._look(file.name) != file:
            raise TrainerError(
                ExitCode.NETWORK_UNAVAILABLE,
                f"{self.uri}: {file.name or 'it'} was changed while it was being downloaded",
                "start the job again when nobody writes there",
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (TrainerError, MemoryError):
            raise
        except (OSError, ValueError) as error:
            raise _told(error, self.uri, self._code) from None


def model_files(place: Place) -> list[str]:
    """The names of a model's files; no pickle and no code is among them. Raises TrainerError."""
    names = sorted(place.names())
    wanted = [name for name in names if _is_wanted(name)]
    if not wanted:
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            f"{place.uri}: there is no model",
            "check bucket and path; config.json, *.safetensors and the tokenizer's files lie directly below it",
        )
    pickles = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in weights.PICKLES)]
    if pickles and not any(name.endswith(weights.SUFFIX) for name in wanted):
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            f"{place.uri}: the weights are pickles only ({', '.join(pickles[:3])}), which run code when read",
            "convert them to safetensors: load and save_pretrained(...) on a machine where you trust them",
        )
    return wanted


def _is_wanted(name: str) -> bool:
    is_named = any(fnmatch.fnmatch(name, pattern) for pattern in weights.MODEL_FILES)
    is_other = any(fnmatch.fnmatch(name, pattern) for pattern in weights.NOT_MODEL_FILES)
    return is_named and not is_other and len(name.encode()) <= _LONGEST_NAME


def _connect(uri: str) -> Any:
    """Arrow's file system, with what the environment says of credentials, endpoint, region and proxies."""
    _check_credentials(uri)
    # What the node may do is the platform's; who runs on a machine of their own can set it to false.
    os.environ.setdefault(_NO_METADATA, "true")
    # Not every store but AWS's understands the checksums that the SDK would send after the content.
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    from pyarrow import fs  # a third of a second, and only s3:// needs it

    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
    address = urlsplit(endpoint)
    try:
        return fs.S3FileSystem(
            **({"scheme": address.scheme, "endpoint_override": address.netloc} if endpoint else {}),
            proxy_options=_proxy_for(endpoint),
            allow_delayed_open=True,  # small files in one request
            connect_timeout=10,
            request_timeout=60,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_NUM_ATTEMPTS),
        )
    except (OSError, ValueError):
        raise TrainerError(
            ExitCode.CREDENTIALS_INVALID,
            f"{uri}: no client can be made with what the environment says",
            "check AWS_ENDPOINT_URL, AWS_REGION and the variables of proxies",
        ) from None


def _check_credentials(uri: str) -> None:
    """Raise TrainerError when there are none, or what is there cannot be right; never with a value."""
    keys = {name: os.environ.get(name, "") for name in _CREDENTIALS}
    endpoint, region = (os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL", "AWS_REGION"))
    wrong = [name for name, value in keys.items() if not _PRINTABLE.fullmatch(value)]
    if not _is_endpoint(endpoint):
        wrong.append("AWS_ENDPOINT_URL")
    if region and not _REGION.fullmatch(region):
        wrong.append("AWS_REGION")
    if wrong:
        raise TrainerError(
            ExitCode.CREDENTIALS_INVALID,
            f"{uri}: {wrong[0]} is not what such a variable holds",
            "look for spaces, line breaks and quotes in the secret; an endpoint is http(s)://host:port",
        )
    has_keys = keys["AWS_ACCESS_KEY_ID"] and keys["AWS_SECRET_ACCESS_KEY"]
    if not (has_keys or any(map(os.environ.get, _OTHER_CREDENTIALS)) or _has_profile() or _asks_metadata()):
        raise TrainerError(
            ExitCode.CREDENTIALS_INVALID,
            f"{uri}: there are no credentials for the object store",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (pod.envFromSecrets), or give the pods' account a role",
        )


def _is_endpoint(endpoint: str) -> bool:
    try:
        address = urlsplit(endpoint)
        has_port = address.port != 0  # raises where it is no number
    except ValueError:
        return False
    is_plain = address.path in ("", "/") and not (address.query or address.fragment or "@" in address.netloc)
    is_one = address.scheme in ("http", "https") and bool(address.hostname) and has_port and is_plain
    return not endpoint or (is_one and _PRINTABLE.fullmatch(endpoint) is not None)


def _has_profile() -> bool:
    folder = Path(os.path.expanduser("~"), ".aws")  # noqa: PTH111 - a user without a home has no profile either
    return any((folder / name).is_file() for name in ("credentials", "config"))


def _asks_metadata() -> bool:
    return os.environ.get(_NO_METADATA, "").lower() == "false"


def _proxy_for(endpoint: str) -> str | None:
    """The proxy that the environment names for the store; the SDK itself does not look."""
    address = urlsplit(endpoint or "https://s3.amazonaws.com")
    return None if proxy_bypass(address.netloc) else getproxies().get(address.scheme)


def _told(error: Exception, uri: str, code: ExitCode) -> TrainerError:
    """An error of the client in our words."""
    text = str(error)
    names = {match[1] for pattern in (_CODE, _NAME) if (match := pattern.search(text))} - {"UNKNOWN"}
    status = int(match[1]) if (match := _STATUS.search(text)) else 0
    name = min(names, default=f"HTTP status {status}" if status else "")
    # To a question that is answered without words, a token that has expired is just a bad request.
    is_wordless = status == 400 and "No response body" in text
    if names & _REFUSED_CODES or status in (401, 403) or is_wordless:
        return TrainerError(
            ExitCode.CREDENTIALS_INVALID,
            f"{uri}: the object store refuses access ({name})",
            "check the keys, that they may list, read and (for an output) write there, and that they have not expired",
        )
    if isinstance(error, FileNotFoundError) or names & _ABSENT_CODES or status == 404:
        what = "bucket" if "NO_SUCH_BUCKET" in names else "bucket or object"
        return TrainerError(code, f"{uri}: there is no such {what}", "check bucket and path, and AWS_ENDPOINT_URL")
    if status in (301, 307) or names & _REGION_CODES:
        return TrainerError(code, f"{uri}: the bucket is in another region", "set AWS_REGION to the bucket's region")
    if isinstance(error, ValueError) or status in (400, 405, 411, 412):
        return TrainerError(code, f"{uri}: the object store does not take it ({name or 'no valid name'})", "check it")
    return TrainerError(
        ExitCode.NETWORK_UNAVAILABLE,
        f"{uri}: the object store cannot be reached ({name or 'no answer'})",
        "check that it runs, the network, AWS_ENDPOINT_URL, AWS_REGION and proxies",
    )
