"""Where data comes from: folders, built-in sets; one file a kind of source."""
