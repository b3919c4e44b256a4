"""`prism mcp`: the MCP server for agents and their hosts."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prism import devices
from prism.cli.models import Template, load

if TYPE_CHECKING:
    from prism.reranker import Reranker

_CHUNK_TOKENS = 4096
"""Scored between two notes of progress: seconds on a laptop. Hosts give up calls that are silent for a minute."""


Root = Annotated[Path | None, typer.Option(help="Let tools read text files below this folder. Default: no files.")]
Transport = Annotated[
    Literal["stdio", "http"],
    typer.Option(help="stdio: a host starts this command; http: streamable HTTP at 127.0.0.1, path /mcp."),
]
Port = Annotated[int, typer.Option(min=1, max=65535, help="With http.")]
MaxFileMb = Annotated[float, typer.Option(min=0.001, help="Refuse files over this many MiB.")]
Model = Annotated[str, typer.Option(help="mini (bundled), a checkpoint directory, or a name on the hub.")]
Evidence = Annotated[
    Literal["written", "quoted", "auto"],
    typer.Option(help="Where evidence comes from; auto: as the model prefers."),
]
Dtype = Annotated[devices.Dtype, typer.Option(help="As with prism rerank.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
SelfTest = Annotated[bool, typer.Option(help="Score a few obvious pairs after loading.")]


def mcp(
    root: Root = None,
    transport: Transport = "stdio",
    port: Port = 8765,
    max_file_mb: MaxFileMb = 1,
    model: Model = "mini",
    evidence: Evidence = "auto",
    template: Template = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    self_test: SelfTest = True,
) -> None:
    """Serve the tools rerank and read_evidence over the Model Context Protocol.

    Hosts (Claude Desktop, Claude Code, Cursor, VS Code) start it over stdio. Only machines with access to this one's
    loopback reach it over HTTP; pages in a browser do not. It answers at once and loads the model meanwhile.
    """
    from prism.mcp_server.folder import Folder
    from prism.mcp_server.server import create_server, loading

    folder = None if root is None else Folder(root, max_file_bytes=int(max_file_mb * 2**20))
    options = {"template": template, "dtype": dtype, "device": device, "self_test": self_test}
    reranker = loading(partial(_load, model, options))
    reranker.add_done_callback(_say)
    server = create_server(reranker, folder, evidence=evidence)
    try:
        if transport == "stdio":
            server.run("stdio")
        else:
            typer.echo(f"MCP over streamable HTTP at http://127.0.0.1:{port}/mcp", err=True)
            server.run("streamable-http", host="127.0.0.1", port=port)
    except* BrokenPipeError:  # the host is gone: there is nobody to tell
        pass
    finally:
        if not reranker.exception():
            reranker.result().close()


def _load(model: str, options: dict[str, Any]) -> Reranker:
    """Long calls and short ones take turns: a host asks several things at a time."""
    reranker = load(model, **options)
    reranker.take_turns(chunk_tokens=_CHUNK_TOKENS)
    return reranker


def _say(loaded: Future[Reranker]) -> None:
    """On standard error, which hosts keep as a log: standard output belongs to the protocol."""
    if error := loaded.exception():
        typer.echo(f"error: {error}", err=True)
    else:
        typer.echo(f"{loaded.result().name} is loaded", err=True)
