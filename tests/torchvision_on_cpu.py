"""Lets the package index's torchvision import beside torch's CPU build, which vLLM's Qwen3.5 asks for.

That torchvision is compiled for CUDA, so its image operators cannot load, and it stops at the two whose shapes it wants
to register. They are declared here, with nothing behind them: text needs none, and calling one is an error as before.

Put this file into the environment's site-packages together with a file `torchvision_on_cpu.pth` that holds the line
`import torchvision_on_cpu`; `make vllm` does.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

_OPERATORS = (
    ("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
    ("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
)


class _DeclareFirst(MetaPathFinder):
    """Finds nothing; declares the operators once somebody asks for torchvision."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        if torch.version.cuda is None:
            for name, schema in _OPERATORS:
                torch.library.define(name, schema)


sys.meta_path.insert(0, _DeclareFirst())
