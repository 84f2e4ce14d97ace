"""Makes packed folders, which the native engine maps as they are."""
