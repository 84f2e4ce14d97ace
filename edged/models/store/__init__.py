"""Where models come from and where they are kept: catalog, downloads, the store keyed by digest."""
