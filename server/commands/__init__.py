"""The commands `utmp-…`."""
