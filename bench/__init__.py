"""Benchmarks of every op and of log p(x) against plain PyTorch, torch.compile, torch.distributions and other libraries."""
