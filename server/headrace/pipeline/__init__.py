"""The pure core, in flow order: decode, admission, queue, batching, cost, encode. No clock, no I/O, no event loop."""
