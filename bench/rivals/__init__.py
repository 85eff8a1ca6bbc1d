"""The rivals of dgmfast: the best plain PyTorch that we could write, torch.distributions, and other libraries."""
