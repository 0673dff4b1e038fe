"""Never trust an update: what is checked before it touches a sum, and the noise of privacy."""
