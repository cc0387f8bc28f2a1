"""Other people's libraries as the benchmarks use them; see README.md. Nothing of theirs is kept here."""
