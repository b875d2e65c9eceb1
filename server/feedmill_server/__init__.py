"""feedmill's server: turns names of batches into tensors."""
