"""The files of a corpus: which are read, what is in each, and whether each is still what was hashed.

`listing` finds and names files; `kinds` decides by a file's name what it is, and `compression` by its content how it
is compressed; `json_rows`, `csv_rows` and `arrow_rows` read rows; `readers` is the registry of them; `versions` hashes
files and notices a change.
"""
