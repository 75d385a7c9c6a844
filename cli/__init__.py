"""The command `finflow`: parse, call the library, print."""
