"""Where bytes come from: a file, a folder or a hub id, read within bounds and mapped lazily."""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import os
import re
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantry.dtypes import ITEM_BYTES, torch_dtype
from quantry.errors import FormatError, HeaderError, TruncatedFile, UsageError
from quantry.layout import BufferSpec

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MappedFile", "Source", "release_pages"]

MAX_JSON_BYTES = 256 << 20  # a tokenizer.json of 262,144 tokens has 33 MB; nothing honest is larger than this
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(/[^/].*)?\Z")
_HUB_PATTERNS = ["*.safetensors", "*.uqff", "*.json", "*.jinja", "*.model", "*.txt"]


_mapped: weakref.WeakSet[MappedFile] = weakref.WeakSet()


def release_pages(tensor: Tensor) -> None:
    """Give the memory of a tensor that lies in a mapped file back to the system; others are left alone.

    The bytes are read again when touched, so nothing is lost but what was written into the private mapping.
    """
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    for file in _mapped:
        if file.base is not None and file.base <= start and end <= file.base + file.size:
            file.drop(start - file.base, end - start)
            return


class MappedFile:
    """One file, mapped privately: reads are bounded, tensors are views, nothing is ever written back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self.base: int | None = None  # address of the mapping, known once a tensor lies in it
        try:
            self.size = path.stat().st_size
            with path.open("rb") as f:
                self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY) if self.size else None
        except OSError as e:
            raise UsageError(f"cannot be read: {e.strerror or e}", file=path) from e

    def read(self, offset: int, length: int, what: str = "data") -> bytes:
        """`length` bytes from `offset`. Raises TruncatedFile when the file ends before."""
        self._check(offset, length, what, None)
        return b"" if self._map is None else self._map[offset : offset + length]

    def buffer(self) -> memoryview:
        """The whole file as bytes, without copying. Release it before the file object goes."""
        return memoryview(b"") if self._map is None else memoryview(self._map)

    def tensor(self, offset: int, spec: BufferSpec, name: str | None = None) -> Tensor:
        """A tensor over the mapped bytes, with a storage of its own; a copy where `offset` is not aligned.

        Raises TruncatedFile naming the tensor `name` when the bytes leave the file.
        """
        import torch

        dtype = torch_dtype(spec.dtype)
        self._check(offset, spec.nbytes, "data", name)
        count = math.prod(spec.shape)
        if count == 0 or self._map is None:
            return torch.empty(spec.shape, dtype=dtype)
        if offset % ITEM_BYTES[spec.dtype]:
            raw = torch.frombuffer(self._map, dtype=torch.uint8, count=spec.nbytes, offset=offset)
            return raw.clone().view(dtype).view(spec.shape)
        flat = torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset)
        self.base = flat.data_ptr() - offset
        _mapped.add(self)
        return flat.view(spec.shape)

    def copy(self, offset: int, spec: BufferSpec, name: str | None = None) -> Tensor:
        """A tensor of its own memory, read past the mapping: no page is mapped, none has to be given back.

        Raises TruncatedFile naming the tensor `name` when the bytes leave the file.
        """
        import torch

        self._check(offset, spec.nbytes, "data", name)
        if not hasattr(os, "preadv") or not spec.nbytes:
            return self.tensor(offset, spec, name).clone()
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._fd)
        values = torch.empty(spec.shape, dtype=torch_dtype(spec.dtype))
        space = memoryview((ctypes.c_char * spec.nbytes).from_address(values.data_ptr())).cast("B")
        done = 0
        while done < spec.nbytes:  # a read may be short
            got = os.preadv(self._fd, [space[done:]], offset + done)
            if not got:
                raise TruncatedFile("became shorter while it was read", file=self.path, tensor=name)
            done += got
        return values

    def drop(self, offset: int, length: int) -> None:
        """Give the pages of a range back to the system; they are read again when touched."""
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages inside the range only
        end = (offset + length) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def _check(self, offset: int, length: int, what: str, name: str | None) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise TruncatedFile(
                f"{what} ends at byte {offset + length} but the file has {self.size} bytes",
                file=self.path,
                tensor=name,
                hint="The download is incomplete or the header lies; fetch the file again.",
            )


class Source:
    """Named files of one checkpoint. `path` is the file or folder the user named, `root` the folder of
    `files`.

    A single file has itself as `files`; a format that needs its siblings (split files) asks `sibling`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = path if path.is_dir() else path.parent
        self.files = (
            tuple(sorted(p.name for p in path.iterdir() if p.is_file())) if path.is_dir() else (path.name,)
        )
        self._mapped: dict[str, MappedFile] = {}

    @classmethod
    def open(cls, spec: str | Path, revision: str | None = None) -> Source:
        """A local file or folder, else a hub id `owner/name` or `owner/name/file`.

        Raises UsageError when it is neither, or when the hub does not have it.
        """
        path = Path(spec).expanduser()
        if path.exists():
            return cls(path)
        if isinstance(spec, str) and _HUB_ID.match(spec) and not spec.startswith((".", "/")):
            return cls(_download(spec, revision))
        raise UsageError(
            "no such file or folder", file=path, hint="Name a file, a folder, or a hub id owner/name."
        )

    def __repr__(self) -> str:
        return f"Source({str(self.path)!r})"

    def __contains__(self, name: str) -> bool:
        return name in self.files

    @property
    def is_file(self) -> bool:
        """Whether the user named one file."""
        return self.root != self.path

    def with_suffix(self, suffix: str) -> tuple[str, ...]:
        """The files ending in `suffix`, sorted."""
        return tuple(name for name in self.files if name.endswith(suffix))

    def sibling(self, name: str) -> Path | None:
        """The path of `name` beside the source's files, None when it does not exist or leaves the folder."""
        if Path(name).name != name:
            return None
        path = self.root / name
        return path if path.is_file() else None

    def file(self, name: str) -> MappedFile:
        """The file `name` (or a sibling), mapped once. Raises UsageError when it does not exist."""
        if name not in self._mapped:
            path = self.sibling(name)
            if path is None:
                raise UsageError(f"has no file {name!r}", file=self.root)
            self._mapped[name] = MappedFile(path)
        return self._mapped[name]

    def read_json(self, name: str) -> Any:
        """The parsed content of a JSON file. Raises HeaderError when it is not UTF-8 JSON, or absurdly
        large."""
        mapped = self.file(name)
        if mapped.size > MAX_JSON_BYTES:
            raise HeaderError(
                f"JSON of {mapped.size} bytes; at most {MAX_JSON_BYTES} are read", file=mapped.path
            )
        try:
            return json.loads(mapped.read(0, mapped.size))
        except (UnicodeDecodeError, ValueError, RecursionError) as e:
            raise HeaderError(f"is not JSON: {e}", file=mapped.path) from e


def _download(spec: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    owner, name, *rest = spec.split("/", 2)
    repo = f"{owner}/{name}"
    try:
        if rest:
            return Path(huggingface_hub.hf_hub_download(repo, rest[0], revision=revision))
        folder = Path(
            huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=_HUB_PATTERNS)
        )
        if any(folder.glob("*.safetensors")) or any(folder.glob("*.uqff")):
            return folder
        packed = [
            f for f in huggingface_hub.HfApi().list_repo_files(repo, revision=revision) if f.endswith(".gguf")
        ]
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as e:
        raise UsageError(
            f"no such file or folder, and the hub did not give it: {str(e).splitlines()[0]}",
            file=spec,
            hint="Check the name; HF_HUB_OFFLINE forbids downloads, HF_TOKEN opens gated models.",
        ) from e
    if len(packed) == 1:
        return Path(huggingface_hub.hf_hub_download(repo, packed[0], revision=revision))
    if packed:
        raise UsageError(
            "holds several GGUF files", file=spec, hint=f"Name one: {repo}/{packed[0]} …: {packed}"
        )
    raise FormatError("holds no safetensors, UQFF or GGUF file", file=spec)
