"""`python -m headrace_kernels check`: the kernels on this machine's GPU, against NumPy and against a plain copy."""
