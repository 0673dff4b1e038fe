"""Where the clients of `utmp-train` run: on this machine, or on Ray."""
