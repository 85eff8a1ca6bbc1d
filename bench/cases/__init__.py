"""The benchmark cases: ops, log p(x), training steps, sampling, and the ceilings of the machine."""
