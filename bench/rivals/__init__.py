"""What dgmfast is compared with: the best plain PyTorch that we could write, torch.distributions, and other libraries."""
