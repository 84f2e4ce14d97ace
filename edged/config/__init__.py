"""Settings schema and validation, the config file, the environment, merging of layers. May import core."""
