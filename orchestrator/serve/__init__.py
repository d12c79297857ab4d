"""Read-only web pages of sweeps, on this machine's loopback address."""
