"""Types that every package uses: prompt, reading, health, errors. Frozen data, no I/O, imports nothing of ours."""
