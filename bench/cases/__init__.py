"""What is measured: ops, log p(x), training steps, sampling, and what the machine can do at best."""
