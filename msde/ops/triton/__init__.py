"""The kernels of the ops for GPUs, in Triton."""
