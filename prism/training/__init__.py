"""Recipes, rows, losses and the trainer behind `prism-train`."""

import logging

# bitsandbytes, which peft imports, warns of a missing kernel for four-bit inference, which training never calls.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
