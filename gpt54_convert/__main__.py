"""`python -m gpt54_convert` is the command `gpt54-convert`."""

from gpt54_convert.cli import main

main()
