"""What this board is and in which state: probes, health rules, findings. May import core."""
