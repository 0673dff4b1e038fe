"""What `utmp-prepare` shows."""
