"""What this board is and how it feels: probes, findings. May import core."""
