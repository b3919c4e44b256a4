"""What of the machine the MCP tools can read: text below the root, nothing else."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prism.errors import InputError
from prism.mcp_server.folder import Folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    root = tmp_path / "root"
    (root / "a" / ".git").mkdir(parents=True)
    (root / "a" / "one.txt").write_bytes("\ufeffeins\r\nzwei".encode())
    (root / "a" / "two.md").write_text("zwei", encoding="utf-8")
    (root / "a" / ".git" / "config").write_text("hidden", encoding="utf-8")
    (root / "a" / ".env").write_text("KEY=1", encoding="utf-8")
    return root


def refused(words: str, folder: Folder, *paths: str) -> None:
    with pytest.raises(InputError) as raised:
        folder.read(paths)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_and_folders(root: Path) -> None:
    folder = Folder(root)
    for paths in (["a"], ["."], ["a/one.txt", "a", "a/../a/one.txt", str(root / "a" / "two.md")]):
        documents, skipped = folder.read(paths)
        assert [(one.id, one.text) for one in documents] == [("a/one.txt", "eins\r\nzwei"), ("a/two.md", "zwei")]
        assert skipped == []


def test_ways_out(root: Path) -> None:
    folder = Folder(root)
    for path in (
        "..",
        "../secret.txt",
        "a/../../secret.txt",
        str(root.parent / "secret.txt"),
        "/etc/passwd",
        "../none",
    ):
        refused("leads out of the root", folder, path)
    refused("is not a path", folder, "a\0b")
    refused("is not there", folder, "a/none.txt")
    (root.parent / "root-beside").mkdir()
    refused("leads out of the root", folder, "../root-beside")


def test_links(root: Path) -> None:
    (root / "inner.txt").symlink_to(root / "a" / "two.md")
    folder = Folder(root)
    assert [one.text for one in folder.read(["inner.txt"])[0]] == ["zwei"]
    (root / "out.txt").symlink_to(root.parent / "secret.txt")
    (root / "up").symlink_to(root.parent, target_is_directory=True)
    (root / "loop").symlink_to(root / "loop")
    (root / "dead.txt").symlink_to(root / "none")
    refused("leads out of the root", folder, "out.txt")
    refused("leads out of the root", folder, "up/secret.txt")
    refused("leads out of the root", folder, "up")
    refused("loop", folder, "loop")
    documents, skipped = folder.read(["."])
    assert {one.text for one in documents} == {"eins\r\nzwei", "zwei"}
    assert {one.path for one in skipped} == {"out.txt", "loop", "dead.txt"}
    assert Folder(root / "up" / "root").read(["a/two.md"])[0][0].text == "zwei", "the root itself may be a link"


def test_what_is_no_text(root: Path) -> None:
    (root / "b.bin").write_bytes(b"text\0text")
    (root / "latin.txt").write_bytes("für".encode("latin-1"))
    (root / "big.txt").write_bytes(b"x" * 101)
    (root / "just.txt").write_bytes(b"x" * 100)
    os.mkfifo(root / "pipe")
    listening = socket.socket(socket.AF_UNIX)
    with listening:
        here = os.open(root, os.O_RDONLY)
        listening.bind(f"/proc/self/fd/{here}/sock")
        os.close(here)
        folder = Folder(root, max_file_bytes=100)
        refused("'b.bin' is binary", folder, "b.bin")
        refused("'latin.txt' is not text in UTF-8 (byte 1)", folder, "latin.txt")
        refused("'big.txt' is over 100 bytes", folder, "big.txt")
        refused("'pipe' is not a file", folder, "pipe")
        refused("'sock' cannot be read", folder, "sock")
        documents, skipped = folder.read(["."])
    assert [one.id for one in documents] == ["just.txt", "a/one.txt", "a/two.md"]
    assert {one.path: one.reason.split()[0] for one in skipped} == {
        **dict.fromkeys(("b.bin", "latin.txt", "big.txt", "pipe"), "is"),
        "sock": "cannot",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(root: Path) -> None:
    (root / "a" / "two.md").chmod(0)
    refused("cannot be read", Folder(root), "a/two.md")


def test_too_much(root: Path) -> None:
    refused("more than 1 files", Folder(root, max_files=1), "a")
    refused("over 12 bytes together", Folder(root, max_bytes=12), "a")
    with pytest.raises(InputError, match=r"--root .*none: expected a directory"):
        Folder(root / "none")


@given(st.lists(st.sampled_from(["..", ".", "a", "up", "one.txt", "secret.txt", "", "/", "inner", "~"]), max_size=6))
def test_no_path_reads_what_is_outside(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    base = tmp_path_factory.getbasetemp() / "walk"
    root = base / "root"
    if not root.exists():
        (root / "a").mkdir(parents=True)
        (base / "secret.txt").write_text("secret", encoding="utf-8")
        (root / "a" / "one.txt").write_text("inside", encoding="utf-8")
        (root / "up").symlink_to(base, target_is_directory=True)
        (root / "a" / "inner").symlink_to(base / "secret.txt")
    try:
        documents, _ = Folder(root).read(["/".join(parts)])
    except InputError:
        return
    assert all(document.text == "inside" for document in documents)
