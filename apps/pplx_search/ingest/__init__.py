"""Turn files into documents: find them in folders (`walk`), and parse them in child processes (`reading`).

Everything that a child process imports depends only on the standard library and the parsers' packages, so that it
starts within a few hundredths of a second. Only `reading` depends on the rest of the app.
"""
