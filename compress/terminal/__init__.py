"""What the user sees: results on stdout, progress on stderr; JSON where it was asked for."""
