"""Split models: parts that fit together, and parts that do not."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import ARCH, F32, FORMAT, STRING, T, finish, gguf_bytes, kv, open_gguf, text

from quantry import DuplicateTensor, FormatError, HeaderError, QuantryError, Source, TruncatedFile, UsageError

FLOATS = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)


class TestHonestParts:
    @pytest.fixture
    def parts(self, tmp_path: Path) -> list[Path]:
        w = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
        w.add_array("tokens", ["a", "b"])
        for i in range(5):
            w.add_tensor(f"t{i}.weight", FLOATS + i)
        finish(w)
        return sorted(tmp_path.glob("*.gguf"))

    def test_any_part_opens_the_whole_model(self, parts: list[Path]) -> None:
        assert [p.name for p in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
        for part in parts:
            checkpoint = open_gguf(part)
            assert checkpoint.names() == [f"t{i}.weight" for i in range(5)]
            assert checkpoint.config["tokens"] == ["a", "b"]
            for i in range(5):
                assert np.array_equal(checkpoint[f"t{i}.weight"].dequantize().numpy(), FLOATS + i)
            problems = list(FORMAT.verify(checkpoint.source, checkpoint.detection, strict=True))
            assert problems == []

    def test_a_first_part_without_tensors(self, tmp_path: Path) -> None:
        w = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2, small_first_shard=True)
        w.add_tensor("t.weight", FLOATS)
        finish(w)
        assert open_gguf(tmp_path / "m-00001-of-00002.gguf").names() == ["t.weight"]

    def test_a_folder_of_one_model_is_detected(self, parts: list[Path]) -> None:
        assert len(open_gguf(parts[0].parent)) == 5

    def test_a_projector_beside_the_model_is_no_second_model(self, parts: list[Path]) -> None:
        parts[0].with_name("mmproj-m-f16.gguf").write_bytes(gguf_bytes())
        assert len(open_gguf(parts[0].parent)) == 5

    def test_a_folder_of_two_models_asks_for_one(self, parts: list[Path]) -> None:
        parts[0].with_name("other.gguf").write_bytes(gguf_bytes())
        with pytest.raises(UsageError, match=r"several GGUF models: m-00001-of-00003.gguf, other.gguf"):
            FORMAT.detect(Source.open(parts[0].parent))


class TestDishonestParts:
    NAMES = tuple(f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3))

    def write(self, folder: Path, **changes: object) -> Path:
        """Three parts of one tensor each; a change is `no2=0`, `count3=2`, `name2="t0"`, `total=9`."""
        for i, name in enumerate(self.NAMES):
            values = (
                ARCH,
                kv("split.no", 2, struct.pack("<H", changes.get(f"no{i + 1}", i))),
                kv("split.count", 2, struct.pack("<H", changes.get(f"count{i + 1}", 3))),
                kv("split.tensors.count", 5, struct.pack("<i", changes.get("total", 3))),
            )
            tensor = T(changes.get(f"name{i + 1}", f"t{i}"), (32,), F32, bytes(128))
            (folder / name).write_bytes(gguf_bytes(values, (tensor,)))
        return folder / self.NAMES[0]

    def refused(self, path: Path, cls: type[QuantryError], sentence: str, file: str) -> None:
        with pytest.raises(QuantryError) as e:
            open_gguf(path)
        assert type(e.value) is cls
        assert sentence in str(e.value)
        assert Path(e.value.file).name == file

    def test_honest_parts_are_accepted(self, tmp_path: Path) -> None:
        assert open_gguf(self.write(tmp_path)).names() == ["t0", "t1", "t2"]

    @pytest.mark.parametrize("opened", [0, 2])
    def test_a_missing_part(self, tmp_path: Path, opened: int) -> None:
        self.write(tmp_path)
        (tmp_path / self.NAMES[1]).unlink()
        self.refused(tmp_path / self.NAMES[opened], FormatError, "part 2 of 3 is missing", self.NAMES[1])

    def test_a_part_that_points_back(self, tmp_path: Path) -> None:
        self.refused(self.write(tmp_path, no2=0), HeaderError, "'split.no' is 0, expected 1", self.NAMES[1])

    def test_a_link_to_the_first_part(self, tmp_path: Path) -> None:
        first = self.write(tmp_path)
        (tmp_path / self.NAMES[2]).unlink()
        (tmp_path / self.NAMES[2]).symlink_to(first)
        self.refused(first, HeaderError, "'split.no' is 0, expected 2", self.NAMES[2])

    def test_parts_that_disagree_about_their_count(self, tmp_path: Path) -> None:
        self.refused(
            self.write(tmp_path, count3=2), HeaderError, "'split.count' is 2, expected 3", self.NAMES[2]
        )

    def test_a_count_that_the_name_contradicts(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, count1=65535)
        self.refused(
            path, HeaderError, "'split.count' is 65535, which the file's name contradicts", self.NAMES[0]
        )

    def test_a_renamed_part(self, tmp_path: Path) -> None:
        path = self.write(tmp_path).rename(tmp_path / "model.gguf")
        self.refused(path, HeaderError, "the file's name contradicts", "model.gguf")

    def test_one_tensor_in_two_parts(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, name3="t0")
        self.refused(path, DuplicateTensor, f"is also in {self.NAMES[0]}", self.NAMES[2])

    def test_a_wrong_total(self, tmp_path: Path) -> None:
        self.refused(
            self.write(tmp_path, total=9), HeaderError, "is 9, but the 3 parts hold 3", self.NAMES[0]
        )

    def test_a_damaged_part(self, tmp_path: Path) -> None:
        path = self.write(tmp_path)
        (tmp_path / self.NAMES[2]).write_bytes(b"GGUF\3")
        self.refused(path, TruncatedFile, "the version takes 4 bytes", self.NAMES[2])

    def test_a_count_that_is_no_integer(self, tmp_path: Path) -> None:
        path = tmp_path / "m.gguf"
        path.write_bytes(gguf_bytes((kv("split.count", STRING, text("3")),)))
        self.refused(path, HeaderError, "'split.count' must be an integer", "m.gguf")

    def test_a_name_that_leaves_the_folder_is_no_sibling(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError):
            open_gguf(tmp_path / "absent-00001-of-00002.gguf")
