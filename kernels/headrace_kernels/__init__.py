"""CUDA kernels of a model server's pre- and post-processing, each with a NumPy reference that is also the CPU path.

`headrace_kernels.reference` needs NumPy alone; the device side needs cuda-core, a driver and a GPU, and is imported
when it is asked for. Nothing here knows the server.
"""
