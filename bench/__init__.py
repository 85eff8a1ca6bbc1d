"""Benchmarks: every op and log p(x) against the best plain PyTorch, its compiled form, torch.distributions and peers."""
