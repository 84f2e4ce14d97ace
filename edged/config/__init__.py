"""Settings and what each key accepts, the config file, the environment, merging of layers. May import core."""
