"""Shared fixtures; denormals are flushed before torch starts its threads."""

import torch

torch.set_flush_denormal(True)
