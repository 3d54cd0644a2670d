"""Files to documents: what lies below a folder (`walk`), and what a file says, read in child processes (`reading`).

This package and all that a child imports stand on the standard library and the parsers' own packages, so that a child
starts in a few hundredths of a second; only `reading` knows the rest of the app.
"""
