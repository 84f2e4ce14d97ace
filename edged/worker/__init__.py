"""The process around an engine: its loop, the frames, and the agent's end of the socket (which imports core alone)."""
