"""The words everyone uses. Plain frozen data, no I/O, imports nothing of ours."""
