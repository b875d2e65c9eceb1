"""What feedmill's servers and clients agree on: messages, their bytes, the order of an epoch. No I/O anywhere."""
