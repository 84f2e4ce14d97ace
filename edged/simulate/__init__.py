"""Many simulated devices in one process: the agent's decisions and connection, without processes of models."""
