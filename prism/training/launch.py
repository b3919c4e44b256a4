"""`prism-train` as a module, for launchers that start one process per GPU (torchrun, accelerate launch)."""

from __future__ import annotations

from prism.cli import main_train

if __name__ == "__main__":
    main_train()
