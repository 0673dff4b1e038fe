"""From recordings to features: `utmp-extract`, which each site runs alone."""
